"""What a long run is made of: items to work on, and a job that makes one row of each.

`run_blocks` (in `florence_jax.batch.run`) cuts a `Source` into blocks of items, loads their
pictures in worker processes, hands each block to a `Job` and writes the rows. Predicting,
evaluating and annotating differ in their job alone.
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

# What `result_to_json` takes: str keys, and values that JSON has.
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One input, which becomes one row of the output.

    Attributes:
        id: names the row; no two items of a source have the same.
        image: where the picture is; not read yet.
        queries: what to ask about it, in order. A job may have questions of its own and ignore it.
        extra: columns that the row carries unchanged, such as a data set's truth.
        error: why the source could not make sense of this input; its row says so, and no job sees
            it.
    """

    id: str
    image: ImageSource = b""
    queries: tuple[Query, ...] = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedItem:
    """An item whose picture could be read.

    Attributes:
        item: the item.
        size: (width, height) of the upright picture, the frame of regions and answers.
        pixels: uint8[H, W, 3], the picture resized by the job's `image_config`, not normalised.
            Items that follow each other and name the same picture share one array.
    """

    item: Item
    size: tuple[int, int]
    pixels: np.ndarray


class Source(Protocol):
    """Items in a fixed order, read a stretch at a time."""

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """What identifies the content, as JSON: a resumed run must find the same."""
        ...

    def __len__(self) -> int:
        """How many items there are."""
        ...

    def ids(self) -> Iterator[str]:
        """Every item's id in order, without reading pictures."""
        ...

    def read(self, start: int, stop: int) -> Iterator[Item]:
        """The items from number `start` up to, but without, `stop`."""
        ...


class Job(Protocol):
    """What is done with the items of a block.

    Called from several threads at a time, each with a block of its own. A job must not let rows
    depend on anything but the block's items: not on time, on threads or on other blocks.
    """

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """What the rows depend on beside the items, as JSON: weights, prompts, decoding settings.

        It is written into the output's manifest, and a run that would go on with another one is
        refused, by the names of the fields that differ.
        """
        ...

    @property
    def image_config(self) -> ImageConfig:
        """Its `size` and `resample` are what pictures are resized by; normalising is the job's."""
        ...

    @property
    def activity(self) -> DeviceStats:
        """What the job counts for the progress bar: tokens, and when the device is busy."""
        ...

    def __call__(self, loaded: Iterable[DecodedItem]) -> Sequence[Row]:
        """One row for each of a block's loaded items, in order.

        The iterable gives items as their pictures are ready: take them one by one, and start work
        on the first while the others are read. `id`, the item's `extra`, and rows of unreadable
        pictures are added by the runner; a job that cannot answer an item gives `{"error": why}`.

        Raises:
            Exception: what no item is to blame for. The block is not written and the run ends.
        """
        ...


@dataclass(frozen=True)
class ListSource:
    """A `Source` of items that are in memory already, for small sets and for tests."""

    items: Sequence[Item]
    fingerprint: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    def ids(self) -> Iterator[str]:
        return (item.id for item in self.items)

    def read(self, start: int, stop: int) -> Iterator[Item]:
        return iter(self.items[start:stop])
