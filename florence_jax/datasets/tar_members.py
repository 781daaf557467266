"""Read the members of a tar, and the places where damage may have lost some.

`tarfile` ends without a word at a damaged header, at one block of zeros and where a file is cut,
and goes round in circles at a negative size. Here each of these is a `Damage`, and reading goes on
behind it. Single headers are decoded, and their checksums compared, by `tarfile.TarInfo.frombuf`.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

_BLOCK = 512
# What archives are padded to: "20 blocks", of tar's first days and of `cat a.tar b.tar`.
_RECORD = 20 * _BLOCK
# The same for archives that were made for tapes.
_TAPE_RECORDS = tuple(_BLOCK << power for power in range(5, 12))
# Long names and pax headers are a few hundred bytes.
_MAX_EXTENSION = 1 << 20
_SCANNED = 2048 * _BLOCK

_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENSIONS = (_LONG_NAME, _LONG_LINK, *_PAX, tarfile.XGLTYPE)
_EXTENSION_NAMES = (b"@LongLink", b"PaxHeader", b"pax_global_header")
_KINDS = {
    tarfile.DIRTYPE: "folder",
    tarfile.LNKTYPE: "hard link",
    tarfile.SYMTYPE: "symbolic link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "pipe (FIFO)",
}
# Their headers may give a size, and no bytes of theirs follow.
_WITHOUT_CONTENT = frozenset({"hard link", "symbolic link", "folder", "device", "pipe (FIFO)"})

Kind = Literal["file", "folder", "hard link", "symbolic link", "other"]


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a tar.

    Attributes:
        start: where its first header is.
        offset, size: its bytes.
        kind: "other" for what has no bytes to read.
        link: what a link leads to, as it is written there.
        problem: why its bytes are not the file's.
    """

    name: str
    start: int
    offset: int
    size: int
    kind: Kind = "file"
    link: str = ""
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Damage:
    """The bytes from `start` to `stop` are not members of a sound tar; `reason` says why."""

    start: int
    stop: int
    reason: str


@dataclass(frozen=True, slots=True)
class NextArchive:
    """Another archive begins behind the end of one, as `cat` joins them."""

    start: int


class _UnreadableError(Exception):
    """A header at a place in the file cannot be read."""

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(reason)
        self.position = position


def read_members(path: Path) -> Iterator[Member | Damage | NextArchive]:
    """Members and damages in the order of the file, of all archives in it.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        yield from _Reader(file).entries()


class _Reader:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size

    def entries(self) -> Iterator[Member | Damage | NextArchive]:
        position = archive = 0
        while position < self._size:
            block = self._block(position)
            if block == bytes(len(block)):
                behind = self._behind_zeros(position)
                reason = self._why_no_end(position - archive, behind - position, behind)
                if reason is not None:
                    yield Damage(position, behind, reason)
                if behind >= self._size:
                    return
                if reason is None:
                    yield NextArchive(behind)
                position = archive = behind
                continue
            try:
                member, behind = self._member(position)
            except _UnreadableError as error:
                behind = self._next_header(error.position)
                yield Damage(position, behind, str(error))
                if behind >= self._size:
                    return
                position = behind
                continue
            yield member
            if member.offset + member.size > self._size:
                behind = self._scan(member.offset)
                reason = (
                    f"the member {member.name!r} of {member.size} bytes is longer than the file"
                )
                yield Damage(member.offset, behind, reason)
                if behind >= self._size:
                    return
            position = behind
        yield Damage(self._size, self._size, "the file ends without an end of the archive")

    def _why_no_end(self, members: int, zeros: int, behind: int) -> str | None:
        """Why zeros after this many bytes are not the end of an archive; None if they are."""
        if zeros < 2 * _BLOCK:
            return "the archive's end is cut" if behind >= self._size else "zeros in the middle"
        if behind >= self._size and self._size % _BLOCK:
            return f"the file has {self._size} bytes, no multiple of {_BLOCK}"
        fills = [_RECORD] if behind < self._size else [_RECORD, *_TAPE_RECORDS]
        if any((members + zeros) % fill == 0 and zeros < fill + 2 * _BLOCK for fill in fills):
            return None
        # Zeros that a disk left where members were seldom end where an archive does, and those of
        # a file that was made at its full size and never filled are many.
        if behind < self._size:
            return "zeros in the middle"
        if zeros > _RECORD + 2 * _BLOCK:
            return f"{zeros} zeros, more than an archive ends with: the file was not copied whole"
        return None

    def _member(self, start: int) -> tuple[Member, int]:
        """The member whose first header is at `start`, and the offset of the next header."""
        position, long_name, long_link = start, None, None
        pax: dict[str, str] = {}
        while (info := self._header(position)).type in _EXTENSIONS:
            content = self._extension(info, position)
            if info.type == _LONG_NAME:
                long_name = _text(content, position)
            elif info.type == _LONG_LINK:
                long_link = _text(content, position)
            elif info.type in _PAX:
                pax |= _pax_records(content, position)
            # A global header holds remarks, such as git's commit: nothing that places a member.
            position += _BLOCK + _padded(info.size)
        offset, size = position + _BLOCK, info.size
        problem = None
        if "size" in pax:
            size = _natural(pax["size"], "size", position)
        if info.type == tarfile.GNUTYPE_SPARSE:
            offset = self._behind_sparse_map(position)
        if info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in pax):
            problem = "is stored as a sparse file, of which only parts are there: unpack the tar"
        kind = _KINDS.get(info.type, "file" if info.isreg() else "other")
        if info.type not in tarfile.SUPPORTED_TYPES:
            problem = f"is of the unknown type {info.type!r}"
        if kind in _WITHOUT_CONTENT:
            size = 0
        name = pax.get("GNU.sparse.name") or pax.get("path") or long_name or info.name
        member = Member(
            name=name.rstrip("/") if kind == "folder" else name,
            start=start,
            offset=offset,
            size=size,
            kind=kind if kind in ("file", "folder", "hard link", "symbolic link") else "other",
            link=pax.get("linkpath") or long_link or info.linkname,
            problem=problem or (f"is a {kind}" if kind not in ("file", "other") else None),
        )
        return member, offset + _padded(size)

    def _header(self, position: int) -> tarfile.TarInfo:
        block = self._block(position)
        if len(block) < _BLOCK:
            raise _UnreadableError("the file is cut inside a header", position)
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            raise _UnreadableError(f"damaged header ({error})", position) from None
        if info.size < 0:
            raise _UnreadableError(f"{info.name!r} has the size {info.size}", position)
        return info

    def _extension(self, info: tarfile.TarInfo, position: int) -> bytes:
        if info.size > _MAX_EXTENSION:
            raise _UnreadableError(f"an extended header of {info.size} bytes", position)
        self._file.seek(position + _BLOCK)
        content = self._file.read(info.size)
        if len(content) < info.size:
            raise _UnreadableError("the file is cut inside an extended header", position)
        return content

    def _behind_sparse_map(self, position: int) -> int:
        """The offset of an old GNU sparse member's bytes: its map may go on in more blocks."""
        goes_on = self._block(position)[482]
        position += _BLOCK
        while goes_on:
            block = self._block(position)
            if len(block) < _BLOCK:
                raise _UnreadableError("the file is cut inside a sparse map", position)
            goes_on = block[504]
            position += _BLOCK
        return position

    def _next_header(self, damaged: int) -> int:
        """The offset at which reading goes on after a damaged header; the file's end if nowhere."""
        block = self._block(damaged)
        if len(block) < _BLOCK:
            return self._size
        # A flipped bit elsewhere leaves the size right, and spares us the member's own content,
        # which may hold headers if it is a tar itself.
        behind = None
        try:
            size = tarfile.nti(block[124:136])  # pyright: ignore[reportAttributeAccessIssue]
        except (tarfile.HeaderError, ValueError):
            size = -1
        if size >= 0 and damaged + _BLOCK + _padded(size) < self._size:
            behind = damaged + _BLOCK + _padded(size)
            if not self._is_header(self._block(behind)):
                behind = None
        if behind is None:
            behind = self._scan(damaged + _BLOCK)
        is_extension = block[156:157] in _EXTENSIONS or any(
            name in block[:100] for name in _EXTENSION_NAMES
        )
        if is_extension and behind < self._size:
            # What it said of the member behind it is lost, its name for one.
            try:
                _, behind = self._member(behind)
            except _UnreadableError as error:
                behind = self._scan(error.position + _BLOCK)
        return min(behind, self._size)

    def _scan(self, position: int) -> int:
        """The offset of the next header from `position` on; the file's end if there is none."""
        position = _padded(position)
        while position < self._size:
            self._file.seek(position)
            chunk = self._file.read(_SCANNED)
            for start in range(0, len(chunk), _BLOCK):
                if self._is_header(chunk[start : start + _BLOCK]):
                    return position + start
            position += _SCANNED
        return self._size

    def _is_header(self, block: bytes) -> bool:
        # The field of the checksum first: it is digits, and few other blocks have them there.
        if len(block) < _BLOCK or not block[148:156].strip(b" \0").isdigit():
            return False
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError, OverflowError):
            return False
        return bool(info.name)

    def _behind_zeros(self, position: int) -> int:
        """The start of the first block from `position` on that is not zeros, or the file's end."""
        while position < self._size:
            self._file.seek(position)
            chunk = self._file.read(_SCANNED)
            nonzero = len(chunk) - len(chunk.lstrip(b"\0"))
            if nonzero < len(chunk):
                return position + nonzero // _BLOCK * _BLOCK
            position += len(chunk)
        return self._size

    def _block(self, position: int) -> bytes:
        self._file.seek(position)
        return self._file.read(_BLOCK)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _text(content: bytes, position: int) -> str:
    text = content.rstrip(b"\0")
    if not text or b"\0" in text:
        raise _UnreadableError("a damaged long name", position)
    return text.decode("utf-8", "surrogateescape")


def _pax_records(content: bytes, position: int) -> dict[str, str]:
    """The `length key=value` records of a pax header."""
    records, start = {}, 0
    while start < len(content):
        digits, _, _ = content[start : start + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = content[start + len(digits) + 1 : start + length]
        key, is_record, value = record.partition(b"=")
        if not is_record or not value.endswith(b"\n") or len(content) < start + length:
            raise _UnreadableError("a damaged extended header", position)
        records[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
        start += length
    return records


def _natural(text: str, what: str, position: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise _UnreadableError(f"an extended header with the {what} {text!r}", position)
    return int(text)
