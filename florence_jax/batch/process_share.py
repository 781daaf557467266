"""Which of several processes this one is, and which blocks it begins with."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

# (index, count) variables of launchers, the first that are set decide.
_LAUNCHERS = (
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"),
)
_TPU = ("TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES")


@dataclass(frozen=True)
class Share:
    """Process `index` of `count`.

    Raises:
        ValueError: there is no such process.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise ValueError(
                f"process {self.index} of {self.count}: the index counts from 0 and is below the "
                "count"
            )

    def order(self, blocks: int) -> list[int]:
        """All blocks in the order in which this process looks for work.

        Its own come first, every `count`-th one; then those of its neighbours, the last ones
        first, where their owner comes last.
        """
        own = list(range(self.index, blocks, self.count))
        others = [
            block
            for step in range(1, self.count)
            for block in reversed(range((self.index + step) % self.count, blocks, self.count))
        ]
        return own + others


def find_share(
    index: int | None, count: int | None, environment: Mapping[str, str] = os.environ
) -> Share:
    """The share that was asked for, or else what `jax.distributed` or the launcher says.

    Understood are SLURM, Open MPI, JAX_PROCESS_ID with JAX_NUM_PROCESSES, and Cloud TPU. No process
    speaks to another.

    Raises:
        ValueError: one number without the other, or numbers that do not go together.
    """
    if (index is None) != (count is None):
        raise ValueError("--process-index and --process-count belong together: give both or none")
    if index is not None and count is not None:
        return Share(index, count)
    return _distributed() or _launched(environment) or Share()


def _distributed() -> Share | None:
    """Of `jax.distributed`, where this process has called its `initialize`."""
    if "jax" not in sys.modules:
        return None
    import jax

    if not jax.distributed.is_initialized():
        return None
    return Share(jax.process_index(), jax.process_count())


def _launched(environment: Mapping[str, str]) -> Share | None:
    for names in _LAUNCHERS:
        if all(name in environment for name in names):
            return _numbers(names, environment[names[0]], environment[names[1]])
    if all(name in environment for name in _TPU):
        hosts = [host for host in environment[_TPU[1]].split(",") if host]
        return _numbers(_TPU, environment[_TPU[0]], str(max(len(hosts), 1)))
    return None


def _numbers(names: tuple[str, str], index: str, count: str) -> Share:
    try:
        return Share(int(index), int(count))
    except ValueError as error:
        raise ValueError(
            f"{names[0]} and {names[1]} name no process ({error}): give --process-index and "
            "--process-count"
        ) from error
