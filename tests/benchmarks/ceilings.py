"""The measured rates of a machine, and the least time for the work of a model there."""

from __future__ import annotations

from dataclasses import dataclass

from florence_jax.model.flops import Work


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Measured rates of a machine: FLOP/s of a large matmul, bytes/s read."""

    flops_per_second: float
    bytes_per_second: float

    def seconds(self, work: Work) -> float:
        """The least time for `work`: computing and reading overlap, so the slower one decides."""
        return max(work.flops / self.flops_per_second, work.bytes / self.bytes_per_second)

    def to_json(self) -> dict[str, float]:
        return {
            "gflop_per_second": round(self.flops_per_second / 1e9, 2),
            "gb_per_second": round(self.bytes_per_second / 1e9, 2),
        }
