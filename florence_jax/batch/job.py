"""Items, sources of items, and jobs: the types of a run that makes one row of each item.

`run_blocks` (in `florence_jax.batch.run`) cuts a `Source` into blocks of items, loads their
images in worker processes, hands each block to a `Job` and writes the rows. Predicting, evaluating
and annotating differ in their job alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from florence_jax.batch.image_reader import ImageSource
from florence_jax.inference.device_stats import DeviceStats
from florence_jax.inference.requests import Query
from florence_jax.processing import ImageConfig

# As `result_to_json` takes it: str keys, and values that JSON has.
Row = dict[str, Any]


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
        pixels: uint8[H, W, 3], the image resized by the job's `image_config`, not normalised.
            Items that follow each other with the same image share one array.
    """

    item: Item
    size: tuple[int, int]
    pixels: np.ndarray


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
    def image_config(self) -> ImageConfig:
        """Its `size` and `resample` resize the images; the job itself normalises them."""
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
