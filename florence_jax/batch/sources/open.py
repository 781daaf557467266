"""Sources by what the command line names: directories, lists, data files and single images."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from florence_jax.batch.job import Item, Source
from florence_jax.batch.sources.files import Files, files_in, files_listed
from florence_jax.batch.sources.jsonl import JsonLines
from florence_jax.batch.sources.pages import AllPages
from florence_jax.batch.sources.parquet import Parquet
from florence_jax.batch.sources.rows import RowReader
from florence_jax.batch.sources.webdataset import WebDataset
from florence_jax.inference.predict import IMAGE_SUFFIXES, refuse_urls
from florence_jax.inference.requests import Query

DATA_FILES = {".jsonl": JsonLines, ".parquet": Parquet, ".tar": WebDataset}


def open_source(
    places: Sequence[str | Path],
    queries: Sequence[Query] = (),
    *,
    image_root: str | Path | None = None,
    all_pages: bool = False,
) -> Source:
    """One source of everything that `places` name, in order.

    Args:
        places: directories of images, `.txt` lists of paths, `.jsonl`, `.parquet` and WebDataset
            `.tar` files, and image files.
        queries: asked about every image whose row brings no task of its own.
        image_root: the directory below which rows name pictures; by default that of their file.
        all_pages: one item for each page of a file with several, and frame of an animation.

    Raises:
        FileNotFoundError: there is no such place.
        ValueError: it holds nothing, or is not what its name says.
    """
    refuse_urls(places)
    parts = [_source(Path(place), tuple(queries), image_root) for place in places]
    source = _Joined(parts, tuple(queries))
    return AllPages(source) if all_pages else source


def _source(place: Path, queries: tuple[Query, ...], image_root: str | Path | None) -> Source:
    if place.is_dir():
        paths = files_in(place)
        if not paths:
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            raise ValueError(
                f"the directory {place} holds no image ({kinds}); files of rows are named "
                f"themselves, as in {place}/*.tar"
            )
        return _files(place, paths, queries)
    if not place.is_file():
        raise FileNotFoundError(
            f"{place} does not exist: expected images, a directory, a list, or a file of rows"
        )
    kind = DATA_FILES.get(place.suffix.lower())
    if kind is not None:
        root = str(place.parent if image_root is None else image_root)
        return kind(place, RowReader(queries=queries, root=root))
    if place.suffix.lower() == ".txt":
        paths = files_listed(place)
        if not paths:
            raise ValueError(f"the list {place} names no image: expected one path per line")
        return _files(place, paths, queries)
    return _files(place, [str(place)], queries)


def _files(place: Path, paths: Sequence[str], queries: tuple[Query, ...]) -> Source:
    if not queries:
        raise ValueError(f"{place} says nothing of a task: give one (--task)")
    return Files(paths=paths, queries=queries)


class _Joined:
    """Several sources, one after the other."""

    def __init__(self, parts: Sequence[Source], queries: Sequence[Query]) -> None:
        self._parts, self._queries = parts, queries
        self._ends = list(itertools.accumulate(len(part) for part in parts))

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {
            "parts": [part.fingerprint for part in self._parts],
            "prompts": [query.record() for query in self._queries],
        }

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
