"""The range of an image's samples: as its file declares it, else estimated from its values.

Integers wider than 8 bits often hold fewer: a 12-bit camera writes 0..4095 into 16-bit files. Read
as 16-bit they come out black. A file that declares its range is believed. Without a declaration the
range is the smallest of 8, 10, 12, 14 and 16 bits that holds the largest value; anything below 16
bits is a guess, and noted.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from florence_jax.processing.image import ImageError
from florence_jax.processing.image.formats import decoder_arguments, significant_bits

_BITS = (8, 10, 12, 14, 16)
# Resampling and colour conversions overshoot the range by a few percent.
_OVERSHOOT = 0.1
# Up to twice white, fractions are 0..1 with highlights; 0..255 images are never that dark.
_BRIGHTEST_UNIT = 2.0

STRETCHED = (
    "image values lie outside every usual range: they are stretched, the smallest to black and the "
    "largest to white"
)
_CLIPPED = "float image values outside 0..{white:g} are read as overshoot and clipped to that range"
_FEWER_BITS = (
    "a {container} image has no value above {white}: it is read as {bits}-bit. If it is only dark, "
    "scale it to the full range first"
)
_DARK = (
    "a float image has values above 2 and none above 16: it is read as 0..255, which is almost "
    "black. If it is meant as 0..1, clip it first"
)


@dataclass(frozen=True)
class SampleRange:
    """The sample values that black and white have; values outside are clipped.

    Attributes:
        low, high: black and white.
        note: the assumption behind them, None where there is none.
    """

    low: float
    high: float
    note: str | None = None


@dataclass(frozen=True)
class Declared:
    """A file's own statement about its samples.

    Attributes:
        high: the value of white; None where it is not said.
        unsigned: 32-bit values are unsigned, which Pillow reads as signed.
        limit: the largest value that the samples' own type holds.
        inverted: 0 is white.
        significant_bits: of a PNG's sBIT chunk.
    """

    high: float | None = None
    unsigned: bool = False
    limit: int = 65535
    inverted: bool = False
    significant_bits: int | None = None


def declared_by(image: Image.Image, data: bytes | None = None) -> Declared:
    """Read the statement of the file that `image` was opened from.

    Args:
        image: the opened image, before or after its pixels are decoded.
        data: the file's content: a PNG's sBIT chunk and JPEG 2000's depth are read from it.
    """
    match image.format:
        case "TIFF":
            return _declared_by_tiff(getattr(image, "tag_v2", {}))
        case "JPEG2000":
            # Pillow shifts samples of fewer bits up to 16. Sixteen is what writers put on values
            # of any depth.
            full = data is not None and jpeg2000_depth(data) == 16
            return Declared() if full else Declared(high=65535)
        case "PPM" if image.mode == "I" and _has_own_maximum(image):
            # Pillow scales them from the file's maximum to 65535.
            return Declared(high=65535)
        case "PNG" if data is not None:
            return Declared(significant_bits=significant_bits(data))
    return Declared()


def integer_range(values: np.ndarray, declared: Declared, container: str) -> SampleRange:
    """The range of integer samples wider than 8 bits.

    Args:
        values: int[...] of one image.
        declared: what its file says.
        container: "16-bit" or the like, for the note.
    """
    low, high = int(values.min()), int(values.max())
    if declared.high is not None and low >= 0 and high <= declared.high:
        return SampleRange(0, declared.high)
    if declared.significant_bits is not None:
        # The standard wants samples scaled up to the full depth; some writers leave them as are.
        white = (1 << declared.significant_bits) - 1
        return SampleRange(0, white if 0 < high <= white else 65535)
    if low < 0 or high > 65535:
        note = STRETCHED if high > low else None
        return SampleRange(low, max(high, low + 1), note)
    bits = next(bits for bits in _BITS if high < 1 << bits)
    white = min((1 << bits) - 1, declared.limit)
    if bits == 16 or high == 0:
        return SampleRange(0, white)
    note = _FEWER_BITS.format(container=container, white=white, bits=bits)
    return SampleRange(0, white, note)


def float_range(values: np.ndarray, name: str, *, stretch: bool) -> SampleRange:
    """The range of float samples: 0..1 or 0..255.

    Args:
        values: float[...] of one image.
        name: the image, for errors.
        stretch: use the smallest and the largest value where neither range fits, as a depth map
            needs it; an error otherwise.

    Raises:
        ImageError: NaN or infinite values, or values that fit neither range.
    """
    if not np.isfinite(values).all():
        raise ImageError(f"{name} holds NaN or infinite values; replace them before passing it")
    low, high = float(values.min()), float(values.max())
    white = 1.0 if high <= 1 or (high <= _BRIGHTEST_UNIT and not _is_whole(values)) else 255.0
    if low >= -_OVERSHOOT * white and high <= white * (
        _BRIGHTEST_UNIT if white == 1 else 1 + _OVERSHOOT
    ):
        if low < 0 or high > white:
            return SampleRange(0, white, _CLIPPED.format(white=white))
        dark = white == 255 and high <= 16 and not _is_whole(values)
        return SampleRange(0, white, _DARK if dark else None)
    if stretch:
        return SampleRange(low, high if high > low else low + 1, STRETCHED)
    raise ImageError(
        f"{name} has {values.dtype} values from {low:g} to {high:g}; expected 0..1 or 0..255 "
        "(pass pixels, not normalised values; 16-bit images as uint16)"
    )


def jpeg2000_depth(data: bytes) -> int | None:
    """Bits of a sample of the first channel, from the codestream's header; None without one."""
    start = data.find(b"\xff\x4f\xff\x51")
    depth = data[start + 42 : start + 43] if start >= 0 else b""
    return (depth[0] & 0x7F) + 1 if depth else None


def _is_whole(values: np.ndarray) -> bool:
    return bool((values == np.rint(values)).all())


def _declared_by_tiff(tags: Any) -> Declared:
    bits = _first(tags.get(258, 1))
    sample_format = _first(tags.get(339, 1))
    inverted = tags.get(262) == 0
    # SMaxSampleValue before MaxSampleValue. Fewer than 8 bits' worth is a statistic of a dark
    # image rather than its white.
    said = next((_first(tags[tag]) for tag in (341, 281) if tag in tags), None)
    floats = sample_format == 3
    high = _positive(said)
    if high is not None and high < 255 and not floats:
        high = None
    if high is None and not floats and isinstance(bits, int) and 8 < bits < 16:
        high = (1 << bits) - 1
    return Declared(
        high=high,
        unsigned=bits == 32 and sample_format == 1,
        limit=32767 if sample_format == 2 and bits == 16 else 65535,
        inverted=inverted,
    )


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and value else value


def _positive(value: Any) -> float | None:
    is_number = isinstance(value, numbers.Real) and 0 < float(value) < float("inf")
    return float(value) if is_number else None


def _has_own_maximum(image: Image.Image) -> bool:
    """Whether a PGM states another maximum than 65535, which writers put on values of any depth."""
    arguments = decoder_arguments(image)
    return isinstance(arguments, tuple) and arguments[-1] != 65535
