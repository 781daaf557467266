"""Rows of the table, written to JSON and Markdown after each of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from florence_jax.runtime.atomic_file import atomic_write

_HEADINGS = ("stage", "what", "result", "of ceiling", "target", "met", "note")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        stage, what: which measurement.
        value, unit: its result; None where there is none, and `note` says why.
        share: of the measured ceiling, 0 to 1.
        target: what is hoped for, as text.
        met: whether the target is met, or the check passes; None where nothing is asked.
        note: in a few words; of a failure, its message.
        details: more of it, for the JSON alone.
        made_by: key of the unit that made it; filled in by the report.
    """

    stage: str
    what: str
    value: float | str | None = None
    unit: str = ""
    share: float | None = None
    target: str = ""
    met: bool | None = None
    note: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    made_by: str = ""

    @property
    def failed(self) -> bool:
        """Whether there is no result because something went wrong."""
        return self.value is None and self.note != ""

    def cells(self) -> tuple[str, ...]:
        value = self.value
        shown = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
        return (
            self.stage,
            self.what,
            f"{shown} {self.unit}".strip(),
            "" if self.share is None else f"{self.share:.1%}",
            self.target,
            {None: "", True: "yes", False: "NO"}[self.met],
            self.note.replace("|", "/").replace("\n", " ")[:300],
        )


class Report:
    """The rows of a run so far, on disk after each of them: a kill loses nothing."""

    def __init__(self, folder: Path, about: Mapping[str, Any], *, resume: bool = False):
        """
        Args:
            folder: gets accelerator.json and accelerator.md.
            about: of the run: the command, the date.
            resume: keep what finished units of an earlier run wrote there, if there was one.
        """
        self.rows: list[Row] = []
        self.finished: list[str] = []
        self._about = dict(about)
        self._json, self._markdown = folder / "accelerator.json", folder / "accelerator.md"
        folder.mkdir(parents=True, exist_ok=True)
        if resume and self._json.exists():
            before = json.loads(self._json.read_text(encoding="utf-8"))
            self.finished = before["finished"]
            rows = (Row(**row) for row in before["rows"])
            self.rows = [row for row in rows if row.made_by in self.finished]
            self._about["begun"] = before.get("begun", before["date"])

    def begin(self, unit: str) -> None:
        """Forget what an earlier run of the unit wrote."""
        self.rows = [row for row in self.rows if row.made_by != unit]
        self.finished = [name for name in self.finished if name != unit]

    def add(self, row: Row, unit: str) -> None:
        self.rows.append(dataclasses.replace(row, made_by=unit))
        self._write()
        print(" | ".join(row.cells()), flush=True)

    def finish(self, unit: str) -> None:
        """Note that the unit need not run again: it has its rows, or it failed."""
        self.finished.append(unit)
        self._write()

    def _write(self) -> None:
        rows = [dataclasses.asdict(row) for row in self.rows]
        content = self._about | {"finished": self.finished, "rows": rows}
        atomic_write(self._json, json.dumps(content, indent=1))
        atomic_write(self._markdown, markdown(self.rows, self._about))


def markdown(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    """The table, below a list of what the run was."""
    lines = [f"- {name}: {value}" for name, value in about.items()]
    lines += ["", _line(_HEADINGS), _line(["---"] * len(_HEADINGS))]
    lines += [_line(row.cells()) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
