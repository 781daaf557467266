"""Timings and what is said of them: medians, spread and ratios."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One call.

    Attributes:
        wall: seconds until the result was there.
        cpu: seconds of processor time of the engine's process, over all its threads.
        others: share of the machine's processors, 0 to 1, that other processes kept busy meanwhile.
    """

    wall: float
    cpu: float
    others: float

    def beyond(self, other: Sample) -> Sample:
        """What this call took more than another."""
        return Sample(wall=self.wall - other.wall, cpu=self.cpu - other.cpu, others=self.others)

    def per_token(self, start: Sample, tokens: int) -> Sample:
        """A token's share, where `self` generated `tokens` more of them than `start` did."""
        more = self.beyond(start)
        return Sample(wall=more.wall / tokens, cpu=more.cpu / tokens, others=more.others)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Several calls: the median, the fastest and slowest, and medians of the rest."""

    median: float
    fastest: float
    slowest: float
    cpu: float
    others: float
    rounds: int

    def to_json(self) -> dict[str, float | int]:
        return {
            name: value if isinstance(value, int) else float(f"{value:.6g}")
            for name, value in dataclasses.asdict(self).items()
        }


def summarise(samples: Sequence[Sample]) -> Summary:
    """Of at least one sample."""
    walls = [sample.wall for sample in samples]
    return Summary(
        median=statistics.median(walls),
        fastest=min(walls),
        slowest=max(walls),
        cpu=statistics.median(sample.cpu for sample in samples),
        others=statistics.median(sample.others for sample in samples),
        rounds=len(walls),
    )
