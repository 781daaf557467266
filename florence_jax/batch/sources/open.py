"""Open sources by path: directories, lists, data files and single images, by file or by page."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import os
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence_jax.batch.image_reader import ImagePage, page_count
from florence_jax.batch.job import Item, Source
from florence_jax.batch.run_inputs import PinnedSource
from florence_jax.batch.sources.parquet import Parquet
from florence_jax.batch.sources.rows import ANSWER_COLUMNS, JsonLines, RowReader
from florence_jax.batch.sources.webdataset import WebDataset
from florence_jax.inference.image_files import Say, named_images
from florence_jax.inference.requests import Query
from florence_jax.processing.image import ImageError
from florence_jax.processing.image.load import page_id

DATA_FILES = {".jsonl": JsonLines, ".parquet": Parquet, ".tar": WebDataset}


def open_source(
    places: Sequence[str | Path],
    queries: Sequence[Query] | None = (),
    *,
    columns: Collection[str] = ANSWER_COLUMNS,
    image_root: str | Path | None = None,
    say: Say | None = None,
    all_pages: bool = False,
) -> Source:
    """Open one source of everything that `places` name, in order.

    Args:
        places: directories of images, `.txt` lists of paths, `.jsonl`, `.parquet` and WebDataset
            `.tar` files, and image files.
        queries: queries of every image whose row has no task of its own; None where nothing is
            asked, and tasks of rows are left out.
        columns: of the rows that the job makes; a row of data may not have them.
        image_root: the directory below which rows name images; by default that of their file.
        say: called with the numbers of skipped files of a directory or archive, by kind.
        all_pages: one item for each page of a file with several, and frame of an animation.

    Raises:
        FileNotFoundError: there is no such place.
        ValueError: a place is empty, or not of the kind that its name says.
    """
    parts: list[Source] = []
    for place, images in named_images(places, say):
        if images is None:
            root = str(place.parent if image_root is None else image_root)
            asked = None if queries is None else tuple(queries)
            reader = RowReader(queries=asked, root=root, columns=frozenset(columns))
            parts.append(DATA_FILES[place.suffix.lower()](place, reader, say))
        elif queries is not None and not queries:
            raise ValueError(f"{place} says nothing of a task: give one (--task)")
        else:
            parts.append(Files(paths=images, queries=tuple(queries or ())))
    source = _Joined(list(map(str, places)), parts, tuple(queries or ()))
    return AllPages(source) if all_pages else source


@dataclass(frozen=True, kw_only=True)
class Files:
    """One item for each path, which is its id; all have the same queries."""

    paths: Sequence[str]
    queries: tuple[Query, ...]

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"files": len(self.paths)}

    def __len__(self) -> int:
        return len(self.paths)

    def ids(self) -> Iterator[str]:
        return iter(self.paths)

    def pins(self) -> Iterator[str]:
        """Size and modification time of each file; digests would read every image at each start."""
        return map(file_pin, self.paths)

    def read(self, start: int, stop: int) -> Iterator[Item]:
        for path in self.paths[start:stop]:
            yield Item(id=path, image=path, queries=self.queries)


def file_pin(path: str | os.PathLike[str]) -> str:
    """A text that changes when the file does."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return "absent"
    return f"{found.st_size} bytes of {found.st_mtime_ns}"


@dataclass(frozen=True)
class _Joined:
    """The sources of `places`, one after the other, and the queries of those without their own."""

    places: Sequence[str]
    parts: Sequence[Source]
    queries: Sequence[Query]

    @functools.cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(len(part) for part in self.parts))

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {
            "prompts": [query.to_dict() for query in self.queries],
            "row_files": self.row_files(),
        }

    def row_files(self) -> dict[str, Any]:
        return {
            place: dict(part.fingerprint)
            for place, part in zip(self.places, self.parts, strict=True)
            if not isinstance(part, Files)
        }

    def pins(self) -> Iterator[str]:
        for place, part in zip(self.places, self.parts, strict=True):
            if isinstance(part, Files):
                yield from part.pins()
            else:  # as a whole, in `row_files`
                yield from itertools.repeat(place, len(part))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def ids(self) -> Iterator[str]:
        for part in self.parts:
            yield from part.ids()

    def read(self, start: int, stop: int) -> Iterator[Item]:
        number = bisect.bisect_right(self._ends, start)
        while start < stop and number < len(self.parts):
            offset = self._ends[number] - len(self.parts[number])
            end = min(stop, self._ends[number])
            yield from self.parts[number].read(start - offset, end - offset)
            start, number = end, number + 1


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
