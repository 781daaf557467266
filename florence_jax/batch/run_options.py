"""How a run over many inputs is cut into blocks and shared among processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

RowFormat = Literal["jsonl", "parquet"]

# (index, count) environment variables of launchers; the first pair that is set counts.
_LAUNCHERS = (
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"),
)
_TPU = ("TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES")
# A CPU takes minutes for this many images.
_BLOCK_SIZE_ON_CPU = 32
_BLOCK_SIZE = 512
_BATCHES_IN_BLOCK = 4


@dataclass(frozen=True)
class ProcessShare:
    """Process `index` of `count` processes that work on one run.

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

        Its own blocks come first, every `count`-th one; then those of its neighbours, the last ones
        first, which their owners reach last.
        """
        own = list(range(self.index, blocks, self.count))
        others = [
            block
            for step in range(1, self.count)
            for block in reversed(range((self.index + step) % self.count, blocks, self.count))
        ]
        return own + others


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is divided. Everything but `block_size` and `row_format` may change on a restart.

    Attributes:
        block_size: items in a block; None for the directory's own, or `default_block_size` in a new
            directory.
        batch_size, max_block_size: what `default_block_size` goes by.
        row_format: None for the directory's own, or "jsonl" in a new directory.
        workers: processes that read images, 0 for a thread of this process; None for one for each
            core but one, at most 16.
        share: which of several processes this one is; it begins with its own blocks.
        lease_seconds: another process's block is taken over after this time without a sign of life.
        extend: add inputs that the run does not know yet, in blocks of their own.

    Raises:
        ValueError: a number is out of range.
    """

    block_size: int | None = None
    batch_size: int = 8
    max_block_size: int | None = None
    row_format: RowFormat | None = None
    workers: int | None = None
    share: ProcessShare = ProcessShare()
    lease_seconds: float = 60.0
    extend: bool = False

    def __post_init__(self) -> None:
        if self.block_size is not None and self.block_size < 1:
            raise ValueError(f"a block of {self.block_size} items: expected at least 1")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"{self.workers} worker processes: expected 0, for none, or more")

    @property
    def worker_count(self) -> int:
        """`workers`, or its default."""
        if self.workers is not None:
            return self.workers
        has_affinity = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        return max(1, min(16, cores - 1))

    def default_block_size(self) -> int:
        """Four full batches of this host's devices, and at least 512 items (32 on a CPU).

        Fewer batches would leave a larger share of the last one to padding. `max_block_size` bounds
        it, but never below one batch.
        """
        import jax

        least = _BLOCK_SIZE_ON_CPU if jax.default_backend() == "cpu" else _BLOCK_SIZE
        batch = self.batch_size * jax.local_device_count()
        size = max(least, _BATCHES_IN_BLOCK * batch)
        return size if self.max_block_size is None else min(size, max(self.max_block_size, batch))


def find_share(
    index: int | None, count: int | None, environment: Mapping[str, str] = os.environ
) -> ProcessShare:
    """The given share, or what `jax.distributed` or the launcher says.

    SLURM, Open MPI, JAX_PROCESS_ID with JAX_NUM_PROCESSES, and Cloud TPU are understood. Processes
    do not talk to each other.

    Raises:
        ValueError: one number without the other, or numbers that do not go together.
    """
    if (index is None) != (count is None):
        raise ValueError("--process-index and --process-count belong together: give both or none")
    if index is not None and count is not None:
        return ProcessShare(index, count)
    return _distributed() or _launched(environment) or ProcessShare()


def _distributed() -> ProcessShare | None:
    """The share that `jax.distributed` knows, if this process has called its `initialize`."""
    if "jax" not in sys.modules:
        return None
    import jax

    if not jax.distributed.is_initialized():
        return None
    return ProcessShare(jax.process_index(), jax.process_count())


def _launched(environment: Mapping[str, str]) -> ProcessShare | None:
    for names in _LAUNCHERS:
        if all(name in environment for name in names):
            return _numbers(names, environment[names[0]], environment[names[1]])
    if all(name in environment for name in _TPU):
        hosts = [host for host in environment[_TPU[1]].split(",") if host]
        return _numbers(_TPU, environment[_TPU[0]], str(max(len(hosts), 1)))
    return None


def _numbers(names: tuple[str, str], index: str, count: str) -> ProcessShare:
    try:
        return ProcessShare(int(index), int(count))
    except ValueError as error:
        raise ValueError(
            f"{names[0]} and {names[1]} name no process ({error}): give --process-index and "
            "--process-count"
        ) from error
