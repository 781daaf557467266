"""WebDataset tars as a source: neighbours that share a name up to its first dot are a sample."""

from __future__ import annotations

import functools
import hashlib
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from florence_jax.batch.image_reader import FileSlice
from florence_jax.batch.job import Item
from florence_jax.batch.sources.rows import ChangeGuard, RowReader
from florence_jax.datasets.tar_members import Damage, Member, NextArchive, read_members
from florence_jax.inference.image_files import Say, skipped_sentence
from florence_jax.processing.image.suffixes import is_image_name, leftover
from florence_jax.runtime.text_file import TextFileError, parse_json

# A row's JSON has a few columns; more is no row.
_MAX_JSON = 4 << 20
# Longest chain of links to links.
_MAX_LINKS = 8
# Most damages that the fingerprint lists one by one.
_LISTED = 100
_LINKS = ("hard link", "symbolic link")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}
# Bytes at each end of an image that identify it.
_SAMPLED = 2048


# The place of a file's bytes in the tar, as (offset, size), or a link that is not resolved yet.
_Place = tuple[int, int] | Member
_What = Literal["image", "json"]


@dataclass(slots=True)
class _Row:
    """The members of a row.

    Attributes:
        name: id of the row, without the tar's path.
        start: offset of its first member, or of the damage.
        image, json: places of its members; None for one that it lacks.
    """

    name: str
    start: int
    image: _Place | None = None
    json: _Place | None = None
    error: str | None = None

    def set_content(self, what: _What, member: Member, said: str = "") -> None:
        """Take the row's image or JSON from `member`, or set its error."""
        if member.kind in _LINKS:
            setattr(self, what, member)
        elif member.problem is not None:
            self.error = f"{said or f'({member.name})'} {member.problem}"
        else:
            setattr(self, what, (member.offset, member.size))


@dataclass
class _Sample:
    """Members that follow each other and share a key: every image is a row."""

    key: str
    start: int
    images: list[Member] = field(default_factory=list)
    jsons: dict[str, Member] = field(default_factory=dict)

    def rows(self) -> Iterator[_Row]:
        """One row per image, with the JSON of the image's name or else of the key."""
        if not self.images:
            yield _Row(self.key, self.start, error="has no image beside it")
        for image in self.images:
            row = _Row(self.key if len(self.images) == 1 else image.name, image.start)
            row.set_content("image", image)
            stem = posixpath.splitext(image.name)[0]
            json = self.jsons.get(stem, self.jsons.get(self.key))
            if json is not None:
                row.set_content("json", json)
            yield row


class WebDataset:
    """The samples of an uncompressed `.tar`: images, and a `.json` with columns as rows have.

    The members are listed once, from their headers; images are read from their places in the tar.
    Every image is a row, and so is every damage, with the range in which members may be lost.
    """

    def __init__(self, path: Path, reader: RowReader, say: Say | None = None) -> None:
        self._path, self._reader = path, reader
        self._guard = ChangeGuard(path)
        self._damages: list[str] = []
        self._skipped: Counter[str] = Counter()
        self._archives = 1
        digest = hashlib.sha256()
        self._rows = list(self._listed(digest))
        _find_links(path, self._rows)
        self._digest = digest.hexdigest()
        if say is not None and not self._rows:
            say(f"{path} is an archive of no image")
        if say is not None and self._archives > 1:
            say(f"{path} is {self._archives} archives, one behind the other; all of them are read")
        if say is not None and self._skipped:
            say(f"{path}: {len(self._rows)} rows, {skipped_sentence(self._skipped)}")

    @property
    def fingerprint(self) -> dict[str, Any]:
        damages = {"damaged": self._damages[:_LISTED]} if self._damages else {}
        content = {"members_sha256": self._digest, "content_sha256": self._content_sha256}
        return {"tar": self._path.name} | content | damages

    @functools.cached_property
    def _content_sha256(self) -> str:
        """A digest of the columns and of both ends of each image.

        An image's ends are beside the headers, which are read anyway: an archive of a terabyte is
        not read as a whole at every start. A change in the middle of an image alone, with its size
        and both ends the same, is not noticed.
        """
        digest = hashlib.sha256()
        with self._path.open("rb") as file:
            for row in self._rows:
                for place, most in ((row.image, 2 * _SAMPLED), (row.json, _MAX_JSON)):
                    if isinstance(place, tuple):
                        _digest_ends(file, *place, most, digest)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._rows)

    def ids(self) -> Iterator[str]:
        return (self._place(row) for row in self._rows)

    def read(self, start: int, stop: int) -> Iterator[Item]:
        self._guard.check()
        with self._path.open("rb") as file:
            for row in self._rows[start:stop]:
                yield self._item(file, row)
        self._guard.check()

    def _item(self, file: Any, row: _Row) -> Item:
        place = self._place(row)
        if row.error is not None or not isinstance(row.image, tuple):
            return Item(id=place, error=f"{place} {row.error}")
        columns: Any = {}
        if isinstance(row.json, tuple):
            offset, size = row.json
            if size > _MAX_JSON:
                return Item(id=place, error=f"{place}.json has {size} bytes, more than {_MAX_JSON}")
            file.seek(offset)
            try:
                columns = parse_json(file.read(size), f"{place}.json")
            except TextFileError as error:
                return Item(id=place, error=str(error))
            if not isinstance(columns, dict):
                return Item(id=place, error=f"{place}.json is no object")
        # The tar decides which sample and which image it is, whatever the JSON says.
        said = {name: columns.pop(name) for name in ("id", "image") if name in columns}
        item = self._reader.item(place, columns | {"image": b"in the tar"})
        if item.error is not None:
            return item
        extra = dict(item.extra) | {f"json_{name}": value for name, value in said.items()}
        image = FileSlice(str(self._path), *row.image)
        return Item(id=place, image=image, queries=item.queries, extra=extra)

    def _place(self, row: _Row) -> str:
        return f"{self._path}/{row.name}"

    def _listed(self, digest: Any) -> Iterator[_Row]:
        """Every row, with a unique name."""
        used: set[str] = set()
        for row in self._grouped(digest):
            if row.name in used:
                row.name = f"{row.name} (byte {row.start})"
            used.add(row.name)
            yield row

    def _grouped(self, digest: Any) -> Iterator[_Row]:
        """The rows of every sample and every damage.

        Raises:
            ValueError: it is no tar, or compressed.
        """
        sample: _Sample | None = None
        for entry in read_members(self._path):
            if isinstance(entry, NextArchive):
                self._archives += 1
                continue
            if isinstance(entry, Damage):
                yield from sample.rows() if sample else ()
                sample = None
                yield self._damage_row(entry)
                continue
            if entry.kind == "folder":
                continue
            digest.update(
                f"{entry.name}\n{entry.offset} {entry.size}\n".encode("utf-8", "surrogateescape")
            )
            skipped = leftover(posixpath.normpath(entry.name))
            if skipped is not None:
                self._skipped[skipped] += 1
                continue
            key, extension = _split(entry.name)
            if sample is None or sample.key != key:
                yield from sample.rows() if sample else ()
                sample = _Sample(key, entry.start)
            if is_image_name(entry.name):
                sample.images.append(entry)
            elif extension.rpartition(".")[2].lower() == "json":
                sample.jsons[posixpath.splitext(entry.name)[0]] = entry
        yield from sample.rows() if sample else ()

    def _damage_row(self, damage: Damage) -> _Row:
        if damage.start == 0 and damage.stop >= self._path.stat().st_size:
            with self._path.open("rb") as file:
                magic = file.read(6)
            kinds = [kind for start, kind in _COMPRESSED.items() if magic.startswith(start)]
            is_what = f"is compressed ({kinds[0]})" if kinds else f"is damaged: {damage.reason}"
            raise ValueError(
                f"{self._path} is no uncompressed tar, it {is_what}. Unpack .gz and the like first "
                "(images hardly shrink), or copy the file again"
            )
        at_end = damage.stop >= self._path.stat().st_size
        where = (
            f"from byte {damage.start} on" if at_end else f"bytes {damage.start} to {damage.stop}"
        )
        self._damages.append(where)
        error = f"is damaged: {damage.reason}. Members that were there are lost: copy the tar again"
        return _Row(where, damage.start, error=error)


def _split(name: str) -> tuple[str, str]:
    """WebDataset's key, a member's path up to its name's first dot, and what follows the dot."""
    folder, base = posixpath.split(name)
    hidden = len(base) - len(base.lstrip("."))
    stem, _, extension = base[hidden:].partition(".")
    return posixpath.join(folder, base[:hidden] + stem), extension


def _digest_ends(file: Any, offset: int, size: int, most: int, digest: Any) -> None:
    """Digest `size` bytes from `offset`; of more than `most`, only the first and last ones."""
    file.seek(offset)
    if size <= most:
        digest.update(file.read(size))
        return
    digest.update(file.read(most // 2))
    file.seek(offset + size - most // 2)
    digest.update(file.read(most // 2))


def _find_links(path: Path, rows: Sequence[_Row]) -> None:
    """Resolve links to places in the tar; a row whose link leads nowhere gets an error."""
    waiting: list[tuple[_Row, _What, Member]] = [
        (row, what, link) for row in rows for what, link in _both(row) if isinstance(link, Member)
    ]
    for _ in range(_MAX_LINKS):
        if not waiting:
            return
        wanted = {_target(link) for _, _, link in waiting}
        found: dict[str, list[Member]] = {}
        for entry in read_members(path):
            if isinstance(entry, Member) and posixpath.normpath(entry.name) in wanted:
                found.setdefault(posixpath.normpath(entry.name), []).append(entry)
        still = []
        for row, what, link in waiting:
            members = found.get(_target(link) or "", [])
            if link.kind == "hard link":  # to what had the name when the link was stored
                members = [member for member in members if member.start < link.start]
            said = f"({link.name}) is a {link.kind} to {link.link!r}"
            if not members:
                row.error = f"{said}, which is not in the tar"
                continue
            row.set_content(what, members[-1], f"{said}, which")
            if members[-1].kind in _LINKS:
                still.append((row, what, members[-1]))
        waiting = still
    for row, _, link in waiting:
        row.error = f"({link.name}) is a link that leads through more than {_MAX_LINKS} others"


def _both(row: _Row) -> tuple[tuple[_What, _Place | None], ...]:
    return ("image", row.image), ("json", row.json)


def _target(link: Member) -> str | None:
    """The name of the member that a link leads to; None if that is outside of the tar."""
    start = posixpath.dirname(link.name) if link.kind == "symbolic link" else ""
    target = posixpath.normpath(posixpath.join(start, link.link))
    return None if target.startswith(("/", "..")) and link.kind == "symbolic link" else target
