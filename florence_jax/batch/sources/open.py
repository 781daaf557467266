"""Open sources by path: directories, lists, data files and single images."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from florence_jax.batch.job import Item, Source
from florence_jax.batch.sources.files import Files
from florence_jax.batch.sources.jsonl import JsonLines
from florence_jax.batch.sources.pages import AllPages
from florence_jax.batch.sources.parquet import Parquet
from florence_jax.batch.sources.rows import RowReader
from florence_jax.batch.sources.webdataset import WebDataset
from florence_jax.inference.image_files import Say, check_places, images_in, images_listed
from florence_jax.inference.requests import Query

DATA_FILES = {".jsonl": JsonLines, ".parquet": Parquet, ".tar": WebDataset}


def open_source(
    places: Sequence[str | Path],
    queries: Sequence[Query] = (),
    *,
    image_root: str | Path | None = None,
    say: Say | None = None,
    all_pages: bool = False,
) -> Source:
    """Open one source of everything that `places` name, in order.

    Args:
        places: directories of images, `.txt` lists of paths, `.jsonl`, `.parquet` and WebDataset
            `.tar` files, and image files.
        queries: queries of every image whose row has no task of its own.
        image_root: the directory below which rows name images; by default that of their file.
        say: called with the numbers of skipped files of a directory or archive, by kind.
        all_pages: one item for each page of a file with several, and frame of an animation.

    Raises:
        FileNotFoundError: there is no such place.
        ValueError: a place is empty, or not of the kind that its name says.
    """
    check_places(places)
    parts = [_source(Path(place), tuple(queries), image_root, say) for place in places]
    source = _Joined(list(map(str, places)), parts, tuple(queries))
    return AllPages(source) if all_pages else source


def _source(
    place: Path, queries: tuple[Query, ...], image_root: str | Path | None, say: Say | None
) -> Source:
    if place.is_dir():
        return _files(place, images_in(place, say), queries)
    kind = DATA_FILES.get(place.suffix.lower())
    if kind is not None:
        root = str(place.parent if image_root is None else image_root)
        return kind(place, RowReader(queries=queries, root=root), say)
    if place.suffix.lower() == ".txt":
        return _files(place, images_listed(place), queries)
    return _files(place, [str(place)], queries)


def _files(place: Path, paths: Sequence[str], queries: tuple[Query, ...]) -> Source:
    if not queries:
        raise ValueError(f"{place} says nothing of a task: give one (--task)")
    return Files(paths=paths, queries=queries)


class _Joined:
    """Several sources, one after the other."""

    def __init__(
        self, places: Sequence[str], parts: Sequence[Source], queries: Sequence[Query]
    ) -> None:
        self._places, self._parts, self._queries = places, parts, queries
        self._ends = list(itertools.accumulate(len(part) for part in parts))

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {
            "prompts": [query.to_dict() for query in self._queries],
            "row_files": self.row_files(),
        }

    def row_files(self) -> dict[str, Any]:
        return {
            place: dict(part.fingerprint)
            for place, part in zip(self._places, self._parts, strict=True)
            if not isinstance(part, Files)
        }

    def pins(self) -> Iterator[str]:
        for place, part in zip(self._places, self._parts, strict=True):
            if isinstance(part, Files):
                yield from part.pins()
            else:  # as a whole, in `row_files`
                yield from itertools.repeat(place, len(part))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def ids(self) -> Iterator[str]:
        for part in self._parts:
            yield from part.ids()

    def read(self, start: int, stop: int) -> Iterator[Item]:
        number = bisect.bisect_right(self._ends, start)
        while start < stop and number < len(self._parts):
            offset = self._ends[number] - len(self._parts[number])
            end = min(stop, self._ends[number])
            yield from self._parts[number].read(start - offset, end - offset)
            start, number = end, number + 1
