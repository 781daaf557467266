"""Items, sources of items, and jobs: the types of a run that makes one row of each item.

`run_blocks` (in `florence_jax.batch.run`) cuts a `Source` into blocks of items, loads their
images in worker processes, hands each block to a `Job` (`block_rows`) and writes the rows.
Predicting, evaluating and annotating differ in their job alone.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from florence_jax.batch.image_reader import (
    ImageSource,
    cropped_pixels,
    image_name,
    resized_pixels,
    whole_pixels,
)
from florence_jax.batch.reader_pool import WorkerPool
from florence_jax.inference.device_stats import DeviceStats
from florence_jax.inference.requests import Query
from florence_jax.processing import ImageConfig
from florence_jax.processing.image.crop import CropConfig
from florence_jax.runtime.error_text import is_of_one_input, row_error_text

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from florence_jax.inference.base_pipeline import BasePipeline

# As `result_to_json` takes it: str keys, and values that JSON has.
Row = dict[str, Any]
# Images that are read ahead of the job, for each block in hand.
LOOKAHEAD = 64


@dataclass(frozen=True, kw_only=True)
class Item:
    """One input, which becomes one row of the output.

    Attributes:
        id: name of the row; unique in its source.
        image: where the image is; it is not read yet.
        queries: prompts about the image, in order; a job may have its own and ignore them.
        extra: columns that are copied to the row, such as a data set's truth.
        error: why the source could not read this input; the row has this error, and no job sees
            the item.
    """

    id: str
    image: ImageSource = b""
    queries: tuple[Query, ...] = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedItem:
    """An item whose image could be read.

    Attributes:
        item: the item.
        size: (width, height) of the upright image, in which regions and answers have coordinates.
        pixels: uint8[H, W, 3], the image resized by the job's `image_config`, not normalised; of
            its own size where that is None.
            Items that follow each other with the same image share one array.
        sha256: of the encoded image, in hexadecimal; None where `image_config` does not crop.
    """

    item: Item
    size: tuple[int, int]
    pixels: np.ndarray
    sha256: str | None = None


class Source(Protocol):
    """Items in a fixed order, read a range at a time."""

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """JSON that identifies the content: a resumed run must find the same."""
        ...

    def __len__(self) -> int:
        """Number of items."""
        ...

    def ids(self) -> Iterator[str]:
        """Every item's id in order, without reading images."""
        ...

    def read(self, start: int, stop: int) -> Iterator[Item]:
        """The items from number `start` to, but not including, `stop`."""
        ...


class Job(Protocol):
    """Makes the rows of a block.

    A job is called from several threads at a time, each with its own block. Rows must depend on
    nothing but the block's items: not on time, threads or other blocks.
    """

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """JSON of everything but the items that the rows depend on: weights, decoding settings...

        It is written into the output's manifest. A run that would go on with another fingerprint
        is refused by the names of the fields that differ.
        """
        ...

    @property
    def image_config(self) -> ImageConfig | CropConfig | None:
        """How images are resized, and cropped by a `CropConfig`; the job itself normalises them.

        None leaves them as they are.
        """
        ...

    @property
    def activity(self) -> DeviceStats:
        """Tokens and the device's time, for the progress bar."""
        ...

    def __call__(self, loaded: Iterable[DecodedItem]) -> Sequence[Row]:
        """One row for each of a block's loaded items, in order.

        Items come as their images are ready: take them one by one, and start work on the first
        while the others are read. The runner adds `id`, the item's `extra`, and the rows of
        unreadable images. For an item that it cannot answer, a job returns `{"error": why}`.

        Raises:
            Exception: an error that no item is to blame for; the block is not written, and the run
                ends.
        """
        ...


class JobError(RuntimeError):
    """A job broke its contract."""


@dataclass(frozen=True)
class ListSource:
    """A `Source` of items in memory, for small sets and for tests."""

    items: Sequence[Item]
    fingerprint: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    def ids(self) -> Iterator[str]:
        return (item.id for item in self.items)

    def read(self, start: int, stop: int) -> Iterator[Item]:
        return iter(self.items[start:stop])


def block_rows(items: Iterable[Item], job: Job, pool: WorkerPool) -> list[Row]:
    """One row for each item, in order: the job's, or the error of an item that has none.

    Raises:
        JobError: the job returned fewer or more rows than it was given items.
    """
    rows: list[Row] = []
    waiting: list[int] = []  # the rows that the job completes

    def loaded() -> Iterator[DecodedItem]:
        for item, future in _read_ahead(items, job, pool):
            rows.append(_frame(item))
            if future is None:
                rows[-1]["error"] = item.error
                continue
            try:
                size, pixels, notes, *digest = future.result()
            except Exception as error:
                # No worker starts, or the pool is closed: no image is to blame.
                if not is_of_one_input(error) or isinstance(error, EOFError):
                    raise
                rows[-1]["error"] = row_error_text(error)
                continue
            if notes:
                rows[-1]["image_note"] = "; ".join(notes)
            waiting.append(len(rows) - 1)
            sha256 = digest[0] if digest else None
            yield DecodedItem(item=item, size=size, pixels=pixels, sha256=sha256)

    stream = loaded()
    answers = job(stream)
    for _ in stream:
        raise JobError("the job did not take all of the block's items")
    if len(answers) != len(waiting):
        raise JobError(f"the job made {len(answers)} rows of {len(waiting)} items")
    for number, answer in zip(waiting, answers, strict=True):
        rows[number].update(answer)
    return rows


def read_items(source: Source, span: range) -> Iterator[Item]:
    """The items of a source in `span`; an item that cannot be read has an error."""
    done = span.start
    while done < span.stop:
        try:
            for item in source.read(done, span.stop):
                done += 1
                yield item
            return
        except Exception as error:
            if not is_of_one_input(error):
                raise
            name = next(itertools.islice(source.ids(), done, done + 1))
            yield Item(id=name, error=f"{name} cannot be read: {row_error_text(error)}")
            done += 1


def _read_ahead(
    items: Iterable[Item], job: Job, pool: WorkerPool
) -> Iterator[tuple[Item, Future[Any] | None]]:
    """Each item with the future of its image; None for an item with an error."""
    ahead: deque[tuple[Item, Future[Any] | None]] = deque()
    config = job.image_config
    before: Item | None = None
    future: Future[Any] | None = None
    for item in items:
        if item.error is not None:
            ahead.append((item, None))
        else:
            # Neighbours with one image share it.
            if future is None or before is None or before.image != item.image:
                future = _read(item.image, config, pool)
            before = item
            ahead.append((item, future))
        if len(ahead) > LOOKAHEAD:
            yield ahead.popleft()
    yield from ahead


def _read(
    image: ImageSource, config: ImageConfig | CropConfig | None, pool: WorkerPool
) -> Future[Any]:
    if config is None:
        return pool.submit(whole_pixels, image)
    if isinstance(config, CropConfig):
        return pool.submit(cropped_pixels, image, config)
    return pool.submit(resized_pixels, image, config.size, config.resample)


def _frame(item: Item) -> Row:
    """The columns that a row has whatever the job answers."""
    row: Row = {"id": item.id}
    name = image_name(item.image)
    if name is not None and name != item.id:
        row["image"] = name
    return row | dict(item.extra)


def pipeline_fingerprint(pipeline: BasePipeline) -> dict[str, Any]:
    """Everything of a pipeline that its answers depend on, as JSON.

    These are the tokenizer and compatibility mode, and what `program_fingerprint` has.
    """
    return program_fingerprint(
        pipeline.programs.params,
        image=pipeline.image_config,
        mesh=getattr(getattr(pipeline, "model", None), "mesh", None),
        matmul_precision=pipeline.programs.matmul_precision,
    ) | {
        "tokenizer": pipeline.tokenizer.sha256(),
        "compat": pipeline.compat or "florence_jax",
    }


def program_fingerprint(
    params: Mapping[str, Any],
    *,
    image: ImageConfig | CropConfig,
    mesh: Mesh | None,
    matmul_precision: str,
) -> dict[str, Any]:
    """The weights, image settings and mesh, and the software and device, as JSON.

    Another jax, another kind of device or another division of the weights rounds otherwise, so that
    results would still be right, but not the same.
    """
    import jax

    import florence_jax
    from florence_jax.export.manifest import weights_sha256

    return ({} if mesh is None else {"mesh": dict(mesh.shape)}) | {
        "weights": {
            "sha256": weights_sha256(params),
            "dtypes": sorted({str(leaf.dtype) for leaf in jax.tree.leaves(params)}),
        },
        "image": dataclasses.asdict(image),
        "software": {"florence_jax": florence_jax.__version__, "jax": jax.__version__},
        "device": jax.local_devices()[0].device_kind,
        "matmul_precision": matmul_precision,
    }
