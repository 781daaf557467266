"""Verify an output directory against its manifest, to the last row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from florence_jax.batch.blocks import digest_path, is_block_name, read_rows
from florence_jax.batch.manifest import MANIFEST, RunError, blocks_of_manifest, read_manifest
from florence_jax.batch.run_inputs import id_bytes, id_key
from florence_jax.runtime.terminal_bar import terminal_bar

# Problems that are listed one by one.
_SHOWN = 20


@dataclass
class Report:
    """The result of `verify_output`.

    Attributes:
        rows: number of rows.
        errors: number of rows with an "error".
        missing: blocks that are not there yet.
        problems: faults of the blocks that are there.
        lost: places in damaged inputs where more rows may have been.
    """

    rows: int = 0
    errors: int = 0
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether every row is there once, as it was written, and every input was sound."""
        return not self.missing and not self.problems and not self.lost

    def describe(self) -> str:
        """The report as text."""
        lines = [f"{self.rows} rows, {self.errors} of them errors"]
        kinds = (self.missing, "missing"), (self.problems, "wrong"), (self.lost, "lost")
        for found, what in kinds:
            lines += [f"{what}: {one}" for one in found[:_SHOWN]]
            if len(found) > _SHOWN:
                lines.append(f"{what}: {len(found) - _SHOWN} more")
        if self.problems:
            lines.append("remove the files that are wrong and run the same command again")
        elif self.missing:
            lines.append("run the same command again: it goes on where it stopped")
        elif self.lost:
            lines.append(
                "not complete: these inputs are damaged, and what was lost there has no row. Copy "
                "them again, and run over them into another directory"
            )
        else:
            lines.append("complete: every input has its row, once, as it was written")
        return "\n".join(lines)


def verify_output(directory: str | Path, *, progress: bool = False) -> Report:
    """Compare every block with the manifest: its rows' number and ids, and its sha256.

    Raises:
        RunError: the directory holds no run.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    if manifest is None:
        raise RunError(f"{directory} holds no {MANIFEST}: no run has begun there")
    kind = manifest["blocks"]["format"]
    blocks = blocks_of_manifest(manifest)
    names = list(blocks.names(kind))
    report, ids, keys = Report(), hashlib.sha256(), np.zeros(blocks.total, np.uint64)
    report.lost = list(_lost(manifest["inputs"].get("row_files", {})))
    for number, name in enumerate(terminal_bar(names, desc="verifying", shown=progress)):
        path = directory / name
        if not path.exists():
            report.missing.append(name)
            continue
        _check_digest(path, report)
        try:
            own = _count(path, report)
        except (ValueError, OSError, KeyError, TypeError) as error:
            report.problems.append(f"{name} cannot be read: {error!r}")
            continue
        span = blocks[number]
        if len(own) != len(span):
            report.problems.append(f"{name} has {len(own)} rows, not {len(span)}")
            continue
        for place, one in zip(span, own, strict=True):
            ids.update(id_bytes(one))
            keys[place] = id_key(one)
    _check_ids(report, ids.hexdigest() == manifest["inputs"]["ids_sha256"], keys)
    known = set(names)
    for path in sorted(directory.iterdir()):
        if is_block_name(path.name) and path.name not in known:
            report.problems.append(f"{path.name} is of another run")
    return report


def _lost(row_files: Mapping[str, Any]) -> Iterator[str]:
    """The damages that the fingerprints of files of rows list."""
    for part in row_files.values():
        name = str(part.get("tar")).encode("utf-8", "backslashreplace").decode()
        yield from (f"{name}, {where}" for where in part.get("damaged", ()))


def _count(path: Path, report: Report) -> list[str]:
    """The ids of a block's rows."""
    ids, errors = [], 0
    for row in read_rows(path):
        if not isinstance(row["id"], str):
            raise ValueError(f"the id {row['id']!r} is not text")
        ids.append(row["id"])
        errors += "error" in row
    report.rows += len(ids)
    report.errors += errors
    return ids


def _check_digest(path: Path, report: Report) -> None:
    try:
        expected = digest_path(path).read_text().split()[0]
    except FileNotFoundError:
        report.problems.append(
            f"{digest_path(path).name} is missing; running the same command again writes it"
        )
        return
    except IndexError:
        expected = "empty"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected:
        report.problems.append(f"{path.name} is damaged: its sha256 is {digest}, not {expected}")


def _check_ids(report: Report, is_listing: bool, keys: np.ndarray) -> None:
    if report.missing or report.problems:
        known = np.sort(keys[keys != 0])
        if (known[1:] == known[:-1]).any():
            report.problems.append("an id appears twice")
    elif not is_listing:
        report.problems.append("the rows' ids are not those of the inputs, in their order")
