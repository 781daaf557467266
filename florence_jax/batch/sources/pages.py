"""All pages of scanned TIFFs and frames of animations, each as an item of its own."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from array import array
from collections.abc import Iterator, Mapping
from typing import Any

from florence_jax.batch.image_reader import ImagePage, page_count
from florence_jax.batch.job import Item
from florence_jax.batch.run_inputs import PinnedSource
from florence_jax.processing.image import ImageError
from florence_jax.processing.image.load import page_id


class AllPages:
    """The items of another source; an image with several pages has one item per page.

    Page 2 of `name` has the id `name#page=2` and a column `page`, unless the row has one. An image
    of one page keeps its id. All images are opened once, to count their pages.
    """

    def __init__(self, source: PinnedSource) -> None:
        self._source = source
        self._refused: dict[int, str] = {}
        # Item number -> number of its first page among all pages.
        self._starts = array("q", itertools.accumulate(self._counts(), initial=0))

    @property
    def fingerprint(self) -> dict[str, Any]:
        # The number of pages follows from the images, which are pinned one by one.
        return {**self._source.fingerprint, "all_pages": True}

    def row_files(self) -> Mapping[str, Any]:
        """The row files of the source."""
        return self._source.row_files()

    def pins(self) -> Iterator[str]:
        """The pin of the image, for each of its pages."""
        for number, pin in enumerate(self._source.pins()):
            yield from itertools.repeat(pin, self._count(number))

    def __len__(self) -> int:
        return self._starts[-1]

    def ids(self) -> Iterator[str]:
        for number, name in enumerate(self._source.ids()):
            count = self._count(number)
            yield from (page_id(name, page) for page in range(1, count + 1) if count > 1)
            if count == 1:
                yield name

    def read(self, start: int, stop: int) -> Iterator[Item]:
        stop = min(stop, len(self))
        if start >= stop:
            return
        first = bisect.bisect_right(self._starts, start) - 1
        last = bisect.bisect_left(self._starts, stop)
        for number, item in enumerate(self._source.read(first, last), start=first):
            for page in range(1, self._count(number) + 1):
                if start <= self._starts[number] + page - 1 < stop:
                    yield self._page(number, item, page)

    def _count(self, number: int) -> int:
        return self._starts[number + 1] - self._starts[number]

    def _page(self, number: int, item: Item, page: int) -> Item:
        if number in self._refused:
            return dataclasses.replace(item, error=self._refused[number])
        if self._count(number) == 1:
            return item
        assert not isinstance(item.image, ImagePage)  # no other source makes pages
        return dataclasses.replace(
            item,
            id=page_id(item.id, page),
            image=ImagePage(item.image, page),
            extra={"page": page, **item.extra},
        )

    def _counts(self) -> Iterator[int]:
        before: Item | None = None
        count = 1
        for number, item in enumerate(self._source.read(0, len(self._source))):
            # Neighbours with one image share its count.
            if before is None or before.image != item.image or number - 1 in self._refused:
                count = self._pages(number, item)
            before = item
            yield count

    def _pages(self, number: int, item: Item) -> int:
        if item.error is not None:
            return 1
        try:
            return page_count(item.image)
        except ImageError as error:
            self._refused[number] = str(error)
            return 1
