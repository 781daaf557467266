"""`run_blocks`: run a job over all items of a source, into a directory, block by block."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from florence_jax.batch.blocks import (
    Blocks,
    RowFormat,
    RunOptions,
    check_format,
    commit_block,
    encode_block,
    ensure_digests,
    writable,
)
from florence_jax.batch.job import Item, Job, Row, Source, block_rows, read_items
from florence_jax.batch.leases import Leases
from florence_jax.batch.manifest import (
    check_manifest,
    claim_manifest,
    make_manifest,
    manifest_differences,
)
from florence_jax.batch.progress import Progress
from florence_jax.batch.reader_pool import WorkerPool
from florence_jax.batch.run_inputs import RunInputs, settle_inputs
from florence_jax.results.table_columns import ANSWERS, Columns
from florence_jax.runtime.atomic_file import check_writable, remove_leftovers
from florence_jax.runtime.signals import Interruption

# The device works on the next block while the last answers of one are written.
BLOCKS_IN_HAND = 2
_POLL_SECONDS = 0.1
_LOOK_SECONDS = 30.0  # between looks at what other processes have finished

# Called with a block's items and rows before its file is written, for example to draw them.
AfterBlock = Callable[[list[Item], list[Row], WorkerPool], None]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The outcome of a run, or of the part of it that this process did.

    Attributes:
        rows: rows that this process wrote.
        errors: those of them with an "error".
        blocks: blocks of the whole run.
        missing: blocks that no process has finished yet.
        tokens: tokens that this process generated.
        seconds: from the first block to the last.
        utilization: share of that time in which the device had work, or None, see `DeviceStats`.
    """

    rows: int
    errors: int
    blocks: int
    missing: int
    tokens: int
    seconds: float
    utilization: float | None


def run_blocks(
    source: Source,
    job: Job,
    directory: str | Path,
    options: RunOptions = RunOptions(),  # noqa: B008
    *,
    columns: Columns = ANSWERS,
    after_block: AfterBlock | None = None,
    progress: bool = True,
) -> Summary:
    """Write one row for every item of `source` into files of `directory`; resume where it stopped.

    A block is a file `block-00003-of-00120.jsonl` that is there as a whole or not at all, with a
    sha256 beside it. Finished blocks are never done again, however the last run ended. Any number
    of processes may work on one directory; nothing else connects them.

    The first SIGINT or SIGTERM finishes the blocks in hand and returns, a second SIGINT raises
    KeyboardInterrupt at once. Neither loses a finished block.

    Args:
        source, job: the items and what is done with them; `run.json` in the directory pins both.
        directory: the output directory.
        options: how the run is divided.
        columns: of the job's rows that have a type in Parquet; other columns are in `extra`.
        after_block: called for each block before its file is written.
        progress: show a bar on stderr, or print a line a minute if stderr is a log.

    Returns:
        A summary; the run is complete when no block is `missing`.

    Raises:
        RunError: the inputs have equal ids or are not those that the run in `directory` began with,
            or the directory is of another run.
        ValueError: the format is Parquet and pyarrow is missing.
        OSError: a block cannot be written.
    """
    while True:
        plan = plan_run(source, directory, options)
        inputs, directory = plan.inputs, plan.directory
        manifest = make_manifest(inputs.record, job.fingerprint, plan.blocks, plan.row_format)
        # Before anything is added: a run that does not belong here changes nothing.
        check_manifest(directory, inputs.begun, manifest, of_inputs=not inputs.number)
        directory.mkdir(parents=True, exist_ok=True)
        # Where another process was first, its manifest or its addition is read.
        if inputs.save(directory) and (inputs.begun or claim_manifest(directory, manifest)):
            break
    return _Run(plan, job, columns, after_block).work(progress)


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run as it would begin or go on in a directory, where nothing is written yet.

    Attributes:
        directory: the output directory.
        options: how the run is divided.
        inputs: every input, those of the run's beginning first.
        row_format: format of the blocks: as given, as begun, or "jsonl".
    """

    directory: Path
    options: RunOptions
    inputs: RunInputs
    row_format: RowFormat

    @functools.cached_property
    def blocks(self) -> Blocks:
        """The blocks: of the size that was given, that the run began with, or the default."""
        begun = self.inputs.begun["blocks"] if self.inputs.begun else {}
        size = self.options.block_size or begun.get("size") or self.options.default_block_size()
        ends = self.inputs.ends
        return Blocks(total=ends[-1], size=size, ends=ends)

    def prepare(self) -> None:
        """Make the directory. Call this before the model is loaded.

        Raises:
            OSError: the directory cannot be made or written to.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        check_writable(self.directory)

    def describe(self) -> str:
        """The blocks, those that are finished and those of this process, as text."""
        blocks, kind = self.blocks, self.row_format
        share, begun = self.options.share, self.inputs.begun
        done = set(blocks.finished(self.directory, kind))
        own = [block for block in range(share.index, len(blocks), share.count) if block not in done]
        lines = [
            f"{len(blocks)} blocks of {blocks.size} as {kind} in {self.directory}/, {len(done)} of "
            "them are there",
            f"process {share.index} of {share.count} begins with {len(own)} blocks, "
            f"{sum(len(blocks[block]) for block in own)} images",
            f"{self.options.worker_count} worker processes read images",
        ]
        if begun is not None:
            manifest = make_manifest(self.inputs.record, begun["job"], blocks, kind)
            of_inputs = not self.inputs.number
            lines += [
                f"refused, for {self.directory} is of another run: {one}"
                for one in manifest_differences(begun, manifest, of_inputs=of_inputs)
            ]
        return "\n".join(lines)


def plan_run(source: Source, directory: str | Path, options: RunOptions) -> RunPlan:
    """The run over `source` that would begin or go on in `directory`.

    Raises:
        RunError, ValueError: as `run_blocks`.
    """
    directory = Path(directory)
    inputs = settle_inputs(directory, source, extend=options.extend)
    begun = inputs.begun["blocks"] if inputs.begun else {}
    kind: RowFormat = options.row_format or begun.get("format") or "jsonl"
    check_format(kind)
    return RunPlan(directory=directory, options=options, inputs=inputs, row_format=kind)


class _Run:
    """One process's part of a run."""

    def __init__(
        self, plan: RunPlan, job: Job, columns: Columns, after_block: AfterBlock | None
    ) -> None:
        self._source, self._job, self._directory = plan.inputs.source, job, plan.directory
        self._blocks, options = plan.blocks, plan.options
        self._kind: RowFormat = plan.row_format
        self._columns, self._after_block = columns, after_block
        self._leases = Leases(plan.directory, seconds=options.lease_seconds)
        self._order = options.share.order(len(self._blocks))
        self._pool = WorkerPool(options.worker_count)
        self._lock = threading.Lock()
        self._counted: set[int] = set()  # finished, and in the progress bar
        self._missing: list[int] = []  # by others, or not looked at yet
        self._failure: BaseException | None = None
        self._stop = threading.Event()

    def work(self, progress: bool) -> Summary:
        remove_leftovers(self._directory)
        there = self._finished()
        ensure_digests(self._directory, map(self._name, there))
        done = sum(len(self._blocks[number]) for number in there)
        self._counted = set(there)
        self._missing = [number for number in self._order if number not in self._counted]
        notice = (
            "finishing the blocks in hand; the same command goes on from there "
            "(Ctrl-C again to stop at once)"
        )
        bar = Progress(self._job.activity, total=self._blocks.total, done=done, shown=progress)
        try:
            with Interruption(self._stop, notice), bar:
                threads = [
                    threading.Thread(target=self._worker_loop, args=(bar,), daemon=True)
                    for _ in range(BLOCKS_IN_HAND)
                ]
                for thread in threads:
                    thread.start()
                looked = time.monotonic()
                while any(thread.is_alive() for thread in threads):
                    # Short waits: signals are handled between the main thread's instructions.
                    time.sleep(_POLL_SECONDS)
                    if time.monotonic() - looked > _LOOK_SECONDS:
                        self._count_others(bar)
                        looked = time.monotonic()
                    bar.refresh()
        finally:
            self._stop.set()
            self._pool.close()
            self._leases.close()
        if self._failure is not None:
            raise self._failure
        missing = len(self._blocks) - len(self._finished())
        if not missing:
            self._leases.clear()
        return Summary(
            rows=bar.rows,
            errors=bar.errors,
            blocks=len(self._blocks),
            missing=missing,
            tokens=self._job.activity.tokens,
            seconds=bar.seconds,
            utilization=self._job.activity.utilization,
        )

    def _worker_loop(self, bar: Progress) -> None:
        try:
            for number in self._pending_blocks():
                self._do(number, bar)
        except BaseException as error:
            self._failure = self._failure or error
            self._stop.set()

    def _pending_blocks(self) -> Iterator[int]:
        """Blocks to do, until other processes are seen to work on all that are missing."""
        while not self._stop.is_set():
            number, waiting = self._next()
            if number is not None:
                yield number
            elif not waiting:
                return
            else:
                self._stop.wait(1.0)

    def _next(self) -> tuple[int | None, bool]:
        """A block to do now, and whether others work on some of those that are missing."""
        waiting = False
        with self._lock:
            for number in list(self._missing):
                if self._path(number).exists():
                    self._missing.remove(number)
                    continue
                if self._leases.is_held(number):
                    waiting = True
                    continue
                self._leases.acquire(number)
                self._missing.remove(number)
                return number, waiting
        return None, waiting

    def _do(self, number: int, bar: Progress) -> None:
        span = self._blocks[number]
        items: Iterator[Item] = map(writable, read_items(self._source, span))
        kept: list[Item] = []
        if self._after_block is not None:
            kept = list(items)
            items = iter(kept)
        rows = block_rows(items, self._job, self._pool)
        if len(rows) != len(span):
            raise RuntimeError(f"the source gave {len(rows)} items for {span}")
        if self._after_block is not None:
            self._after_block(kept, rows, self._pool)
        content = encode_block(rows, self._kind, self._columns)
        with self._lock:
            self._counted.add(number)
        commit_block(self._path(number), content)
        self._leases.release(number)
        bar.add(len(rows), sum("error" in row for row in rows))

    def _count_others(self, bar: Progress) -> None:
        """Advance the bar by what other processes have finished."""
        there = self._finished()
        with self._lock:
            new = set(there) - self._counted
            self._counted |= new
        bar.add_others(sum(len(self._blocks[number]) for number in new))

    def _finished(self) -> list[int]:
        return self._blocks.finished(self._directory, self._kind)

    def _path(self, number: int) -> Path:
        return self._directory / self._name(number)

    def _name(self, number: int) -> str:
        return self._blocks.name(number, self._kind)
