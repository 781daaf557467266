"""Blocks of a run: their items, how processes share them, and the files that hold their rows."""

from __future__ import annotations

import bisect
import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from florence_jax.batch.job import Item, Row
from florence_jax.results.parquet import load_pyarrow, table_bytes, table_rows
from florence_jax.results.rows import result_to_json
from florence_jax.results.table_columns import ANSWERS, Columns
from florence_jax.runtime.atomic_file import write_once
from florence_jax.runtime.error_text import is_of_one_input, row_error_text
from florence_jax.runtime.jsonl import json_text

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


_NAME = re.compile(r"block-(\d+)-of-(\d+)\.(\w+)")


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """`total` items in contiguous blocks of `size`; the last block may be smaller.

    Items that were added to a run are in blocks of their own behind the first ones, which keep
    their names.

    Attributes:
        total: number of items.
        size: items in a block.
        ends: numbers of items at the run's beginning and after each addition; the last is `total`.
            Empty if nothing was added.

    Raises:
        ValueError: `size` is below 1.
    """

    total: int
    size: int
    ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"a block of {self.size} items: expected at least 1")

    def __len__(self) -> int:
        return self._stretches[-1][1]

    def __getitem__(self, number: int) -> range:
        """The numbers of the items in block `number`."""
        first_item, _, first_block, end = self._stretch_of_block(number)
        start = first_item + (number - first_block) * self.size
        return range(start, min(start + self.size, end))

    def name(self, number: int, extension: str) -> str:
        """The file of block `number`, such as block-00003-of-00120.jsonl."""
        return f"block-{number:05d}-of-{self._stretch_of_block(number)[1]:05d}.{extension}"

    def names(self, extension: str) -> Iterator[str]:
        """Every block's name, in order."""
        return (self.name(number, extension) for number in range(len(self)))

    def block_of(self, item: int) -> int:
        """The number of the block that holds an item."""
        ends = [end for *_, end in self._stretches]
        first_item, _, first_block, _ = self._stretches[bisect.bisect_right(ends, item)]
        return first_block + (item - first_item) // self.size

    def finished(self, directory: Path, extension: str) -> list[int]:
        """The blocks whose files are in `directory`, in order."""
        # One listing: a look-up for each block takes minutes on a remote file system.
        there = set(os.listdir(directory)) if directory.exists() else set()
        return [number for number, name in enumerate(self.names(extension)) if name in there]

    @functools.cached_property
    def _stretches(self) -> list[tuple[int, int, int, int]]:
        """(first item, blocks up to its end, first block, end item) of each addition."""
        found, item, block = [], 0, 0
        for end in self.ends or (self.total,):
            after = block - (-(end - item) // self.size)
            found.append((item, after, block, end))
            item, block = end, after
        return found

    def _stretch_of_block(self, number: int) -> tuple[int, int, int, int]:
        return next((one for one in self._stretches if number < one[1]), self._stretches[-1])


def is_block_name(name: str) -> bool:
    """Whether a file of this name may be a block, of this run or another."""
    return _NAME.fullmatch(name) is not None


def encode_rows(rows: Sequence[Row], kind: RowFormat, columns: Columns = ANSWERS) -> bytes:
    """The content of a file of `rows`; equal rows give equal bytes.

    Args:
        rows: the rows.
        kind: the format.
        columns: typed columns of Parquet.

    Raises:
        TypeError, ValueError: a row holds a value that JSON cannot, or pyarrow is missing.
    """
    plain = [result_to_json(row) for row in rows]
    if kind == "jsonl":
        return b"".join(f"{json_text(row)}\n".encode() for row in plain)
    return table_bytes(plain, columns)


def encode_block(rows: list[Row], kind: RowFormat, columns: Columns = ANSWERS) -> bytes:
    """`encode_rows`, where a row that cannot be encoded becomes its id and an error.

    The row is replaced in `rows` too, so that the caller counts it as an error.
    """
    try:
        return encode_rows(rows, kind, columns)
    except Exception as error:
        if not is_of_one_input(error):
            raise
    kept = list(rows)
    for number, row in enumerate(kept):
        try:
            encode_rows([row], kind, columns)
        except Exception as error:
            kept[number] = {
                "id": row["id"],
                "error": f"its row cannot be written: {row_error_text(error)}",
            }
    rows[:] = kept
    return encode_rows(kept, kind, columns)


def writable(item: Item) -> Item:
    """The item, or one with an error if its row could not be written.

    This is found before the model is asked, and no block is lost for it.
    """
    try:
        result_to_json(item.extra)
        result_to_json([query.to_dict() for query in item.queries])
    except Exception as error:
        text = row_error_text(error)
        return Item(id=item.id, error=f"its row cannot be written: {text}; leave that out")
    return item


def check_format(kind: RowFormat) -> None:
    """Check that the format can be written here, before the first block is to be.

    Raises:
        ValueError: the format is Parquet and pyarrow is missing.
    """
    if kind == "parquet":
        load_pyarrow()


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file that `encode_rows` made; its suffix tells the format.

    Raises:
        ValueError: the file is damaged.
    """
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)
        return
    yield from table_rows(path)


def commit_block(path: Path, content: bytes) -> bool:
    """Write a block's file unless it exists, and its sha256 beside it (`digest_path`).

    Returns:
        Whether this call made the file.
    """
    made = write_once(path, content)
    if made:
        # The digest of an earlier file of this name, which somebody removed to have it made again.
        digest_path(path).unlink(missing_ok=True)
        _write_digest(path, hashlib.sha256(content).hexdigest())
    return made


def ensure_digests(directory: Path, names: Iterable[str]) -> None:
    """Write the digests that killed processes had no time for."""
    there = set(os.listdir(directory))
    for path in (directory / name for name in names):
        if digest_path(path).name not in there:
            with path.open("rb") as file:
                _write_digest(path, hashlib.file_digest(file, "sha256").hexdigest())


def digest_path(path: Path) -> Path:
    """The file with the sha256 of `path`, which `sha256sum -c` reads.

    Readers of a directory of Parquet files skip names that begin with an underscore.
    """
    hidden = "_" if path.suffix == ".parquet" else ""
    return path.with_name(f"{hidden}{path.name}.sha256")


def _write_digest(path: Path, digest: str) -> None:
    write_once(digest_path(path), f"{digest}  {path.name}\n".encode())
