"""One measured case: what each engine took or why it has no time, and the ratio that follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.rivals.engines.engine import OURS
from tests.benchmarks.rivals.samples import Sample, Summary, summarise


@dataclass(frozen=True, kw_only=True)
class Row:
    """An engine's line: its times, or a note that says why there are none."""

    label: str
    summary: Summary | None = None
    note: str | None = None

    @classmethod
    def of(cls, label: str, samples: Sequence[Sample]) -> Row:
        """Of at least one sample.

        A difference of two calls that is not positive is no time: other work disturbed one of
        them by more than the difference, so that the row says this instead.
        """
        summary = summarise(samples)
        if summary.median <= 0:
            return cls(label=label, note=f"lost in the noise: {summary.median * 1e3:.3g} ms")
        return cls(label=label, summary=summary)


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """One table.

    Attributes:
        case, title: which.
        context: what holds for the whole table (model, dtype, threads, ...), for the JSON line.
        rows: by the engine's name.
        floor: seconds that the measured ceilings allow; None where there is no such figure.
        gflop: the work's.
        images: in one call; None where answers are not counted in images.
    """

    case: str
    title: str
    context: Mapping[str, Any]
    rows: Mapping[str, Row]
    floor: float | None = None
    gflop: float | None = None
    images: int | None = None

    def fastest_rival(self) -> str | None:
        """The engine, ours apart, with the smallest median."""
        times = {
            name: row.summary.median
            for name, row in self.rows.items()
            if row.summary is not None and name != OURS
        }
        return min(times, key=times.__getitem__, default=None)

    def ratio(self, name: str | None = None) -> float | None:
        """An engine's median, the fastest rival's by default, in units of ours."""
        ours, theirs = self._median(OURS), self._median(name or self.fastest_rival())
        return None if ours is None or theirs is None else theirs / ours

    def share(self, name: str) -> float | None:
        """The floor in units of an engine's median."""
        median = self._median(name)
        return None if median is None or self.floor is None else self.floor / median

    def to_json(self) -> dict[str, Any]:
        engines = {}
        for name, row in self.rows.items():
            if row.summary is None:
                engines[name] = {"note": row.note}
                continue
            engines[name] = row.summary.to_json()
            share = self.share(name)
            if share is not None:
                engines[name]["share_of_roofline"] = round(share, 4)
            if self.images is not None:
                engines[name]["images_per_second"] = round(self.images / row.summary.median, 4)
        ratio = self.ratio()
        return {
            "case": self.case,
            "title": self.title,
            **self.context,
            "gflop": None if self.gflop is None else round(self.gflop, 3),
            "floor_seconds": None if self.floor is None else float(f"{self.floor:.6g}"),
            "engines": engines,
            "fastest_rival": self.fastest_rival(),
            "ratio": None if ratio is None else round(ratio, 4),
        }

    def _median(self, name: str | None) -> float | None:
        row = self.rows.get(name) if name is not None else None
        return None if row is None or row.summary is None else row.summary.median
