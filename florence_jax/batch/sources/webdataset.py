"""WebDataset tars: neighbouring members that share a name up to its first dot are one row."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence_jax.batch.images import FileSlice
from florence_jax.batch.job import Item
from florence_jax.batch.sources.rows import RowReader
from florence_jax.inference.predict import IMAGE_SUFFIXES

# A row's JSON is a few columns; more is no row.
_MAX_JSON = 4 << 20
# Bytes at each end of a picture that identify it.
_SAMPLED = 2048


@dataclass(frozen=True, slots=True)
class _Sample:
    """Where a sample's members are: (offset, size) in the tar, None for what it lacks."""

    key: str
    image: tuple[int, int] | None
    json: tuple[int, int] | None


class WebDataset:
    """The samples of an uncompressed `.tar`: an image, and a `.json` with columns as rows have.

    The tar's members are listed once, from their headers; pictures are read where they lie.
    """

    def __init__(self, path: Path, reader: RowReader) -> None:
        self._path, self._reader = path, reader
        digest = hashlib.sha256()
        self._samples = list(_samples(_members(path), digest))
        self._digest = digest.hexdigest()

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {
            "tar": self._path.name,
            "members_sha256": self._digest,
            "content_sha256": self._content_sha256,
        }

    @functools.cached_property
    def _content_sha256(self) -> str:
        """Over the columns, and both ends of each picture.

        A picture's ends lie beside the headers, which are read anyway: an archive of a terabyte is
        not read as a whole at every start. A picture that was changed in its middle alone, with its
        size and both ends the same, is not noticed.
        """
        digest = hashlib.sha256()
        with self._path.open("rb") as file:
            for sample in self._samples:
                for span, most in ((sample.image, 2 * _SAMPLED), (sample.json, _MAX_JSON)):
                    if span is not None:
                        _digest_ends(file, *span, most, digest)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._samples)

    def ids(self) -> Iterator[str]:
        return (self._place(sample) for sample in self._samples)

    def read(self, start: int, stop: int) -> Iterator[Item]:
        with self._path.open("rb") as file:
            for sample in self._samples[start:stop]:
                yield self._item(file, sample)

    def _item(self, file: Any, sample: _Sample) -> Item:
        place = self._place(sample)
        if sample.image is None:
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            return Item(id=place, error=f"{place} has no image ({kinds})")
        row: Any = {}
        if sample.json is not None:
            offset, size = sample.json
            if size > _MAX_JSON:
                return Item(id=place, error=f"{place}.json has {size} bytes, more than {_MAX_JSON}")
            file.seek(offset)
            try:
                row = json.loads(file.read(size))
            except ValueError as error:
                return Item(id=place, error=f"{place}.json is no JSON: {error}")
            if not isinstance(row, dict):
                return Item(id=place, error=f"{place}.json is no object")
        # The tar says which sample and which picture it is, whatever the JSON says.
        said = {name: row.pop(name) for name in ("id", "image") if name in row}
        item = self._reader.item(place, row | {"image": b"in the tar"})
        if item.error is not None:
            return item
        extra = dict(item.extra) | {f"json_{name}": value for name, value in said.items()}
        image = FileSlice(str(self._path), *sample.image)
        return Item(id=place, image=image, queries=item.queries, extra=extra)

    def _place(self, sample: _Sample) -> str:
        return f"{self._path}/{sample.key}"


def _digest_ends(file: Any, offset: int, size: int, most: int, digest: Any) -> None:
    """Digest `size` bytes from `offset`, or the first and last ones where there are more than
    `most`."""
    file.seek(offset)
    if size <= most:
        digest.update(file.read(size))
        return
    digest.update(file.read(most // 2))
    file.seek(offset + size - most // 2)
    digest.update(file.read(most // 2))


def _members(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of every regular file in the tar, in order.

    Raises:
        ValueError: it is damaged, or compressed.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # it keeps them all
                if member.isreg():
                    yield member.name, member.offset_data, member.size
    except tarfile.TarError as error:
        raise ValueError(
            f"{path} is no uncompressed tar, or is damaged ({error}): unpack .gz and the like "
            "first, pictures hardly shrink"
        ) from error


def _samples(members: Iterator[tuple[str, int, int]], digest: Any) -> Iterator[_Sample]:
    sample: _Sample | None = None
    for name, offset, size in members:
        digest.update(f"{name}\n{offset} {size}\n".encode("utf-8", "surrogateescape"))
        folder, base = os.path.split(name)
        stem, _, extension = base.partition(".")
        if not stem:  # a hidden file is of no sample
            continue
        key = os.path.join(folder, stem)
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
            sample = _Sample(key, None, None)
        suffix = f".{extension.rpartition('.')[2].lower()}"
        if suffix in IMAGE_SUFFIXES and sample.image is None:
            sample = _Sample(key, (offset, size), sample.json)
        elif extension.lower() == "json":
            sample = _Sample(key, sample.image, (offset, size))
    if sample is not None:
        yield sample
