"""The chunks of a PNG file that Pillow does not tell about, or that it refuses to read."""

from __future__ import annotations

from collections.abc import Iterator

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Texts and the colour profile: nothing here uses them.
_UNUSED = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})


def is_png(data: bytes) -> bool:
    """Does a file with this content claim to be a PNG?"""
    return data.startswith(_SIGNATURE)


def significant_bits(data: bytes) -> int | None:
    """The bits of a sample that carry information, by the sBIT chunk; None without one."""
    for kind, start, end in _chunks(data):
        if kind == b"IDAT":
            return None
        if kind == b"sBIT" and end > start:
            # One byte a channel; the widest colour channel decides.
            bits = max(data[start : min(end, start + 3)])
            return bits if 8 <= bits <= 16 else None
    return None


def without_texts_and_profile(data: bytes) -> bytes:
    """The file without its texts and colour profile, which may unpack to any size."""
    kept = [_SIGNATURE]
    position = len(_SIGNATURE)
    for kind, _, end in _chunks(data):
        if kind not in _UNUSED:
            kept.append(data[position : end + 4])
        position = end + 4
    kept.append(data[position:])
    return b"".join(kept)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of each chunk's content, as far as they are whole."""
    position = len(_SIGNATURE)
    while is_png(data) and position + 12 <= len(data):
        start = position + 8
        end = start + int.from_bytes(data[position : position + 4], "big")
        if end + 4 > len(data):
            return
        yield data[position + 4 : start], start, end
        position = end + 4
