"""Conversion of every pixel format to 8-bit RGB.

Florence-2 was trained on 8-bit RGB. The rules, one per kind of input: transparency is composited
over white (paper, screenshots and diagrams are drawn on white); samples wider than 8 bits and
floats are scaled from their range (see `sample_range`) and rounded; anything else is PIL's own
conversion.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from florence_jax.processing.image import ImageError
from florence_jax.processing.image.sample_range import (
    Declared,
    SampleRange,
    float_range,
    integer_range,
)

# Values converted at a time: the intermediate arrays are wider than the result.
_CHUNK = 1 << 20


def image_to_rgb(
    image: Image.Image, name: str, notes: list[str], declared: Declared | None = None
) -> Image.Image:
    """A new RGB image from a PIL image of any mode.

    Args:
        image: the image.
        name: the image, for errors.
        notes: assumptions about the range of its values are added here.
        declared: what the image's file says about that range.

    Raises:
        ImageError: values that are not finite.
    """
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _wide_to_rgb(image, name, notes, declared or Declared())
    if image.has_transparency_data:
        # PIL has no direct way from premultiplied grey.
        return _over_white((image.convert("LA") if image.mode == "La" else image).convert("RGBA"))
    if image.mode == "RGB":
        return image.copy()
    return image.convert("RGB")


def array_to_rgb(array: np.ndarray, name: str, notes: list[str]) -> Image.Image:
    """An RGB image from an array [H, W] or [H, W, 1 | 3 | 4].

    bool, uint8 and integers within 0..255 are 8-bit. uint16 is 16-bit, or the fewer bits that its
    largest value suggests; floats are 0..1 or 0..255 (both in `sample_range`). Alpha has a range of
    its own.

    Args:
        array: the image.
        name: the image, for errors.
        notes: assumptions about the range of its values are added here.

    Raises:
        ImageError: another shape, dtype or range, or values that are not finite.
    """
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))):
        hint = (
            "this looks like channels first: transpose it with array.transpose(1, 2, 0)"
            if array.ndim == 3 and array.shape[0] in (1, 3, 4)
            else "pass one image at a time, channels last"
        )
        raise ImageError(
            f"{name} has shape {array.shape}; expected [H, W] or [H, W, 1 | 3 | 4]; {hint}"
        )
    if 0 in array.shape:
        raise ImageError(f"{name} has shape {array.shape}: it holds no pixels")
    if array.ndim == 3 and array.shape[-1] == 4:
        color = _array_to_eight(array[..., :3], name, notes)
        alpha = _array_to_eight(array[..., 3:], name, notes)
        return _over_white(Image.fromarray(np.concatenate([color, alpha], axis=-1)))
    return Image.fromarray(np.ascontiguousarray(_array_to_eight(array, name, notes))).convert("RGB")


def scaled_to_eight(values: np.ndarray, samples: SampleRange) -> np.ndarray:
    """Scale `values` to uint8, black to 0 and white to 255, rounded to the nearest."""

    def scale(part: np.ndarray) -> np.ndarray:
        shares = (part.astype(np.float64) - samples.low) / (samples.high - samples.low)
        return np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)

    return _in_chunks(values, scale)


def _wide_to_rgb(
    image: Image.Image, name: str, notes: list[str], declared: Declared
) -> Image.Image:
    """RGB of an image with one channel of 16-bit, 32-bit or float samples."""
    values = np.asarray(image)
    if image.mode == "F":
        low, high = float(values.min()), float(values.max())
        if declared.high is not None and low >= 0 and high <= declared.high:
            samples = SampleRange(0, declared.high)
        else:
            samples = float_range(values, name, stretch=True)
    else:
        if declared.unsigned and values.dtype == np.int32:
            values = values.view(np.uint32)
        container = "16-bit" if image.mode.startswith("I;16") else "32-bit"
        samples = integer_range(values, declared, container)
    _add(notes, samples)
    eight = scaled_to_eight(values, samples)
    if declared.inverted:
        eight = 255 - eight
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        eight[values == transparent] = 255
    return Image.fromarray(eight).convert("RGB")


def _over_white(rgba: Image.Image) -> Image.Image:
    paper = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(paper, rgba).convert("RGB")


def _array_to_eight(array: np.ndarray, name: str, notes: list[str]) -> np.ndarray:
    kind = array.dtype.kind
    if array.dtype == np.uint8:
        return array
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if kind == "u" and array.dtype.itemsize == 2:
        samples = integer_range(array, Declared(), "16-bit")
    elif kind == "f":
        samples = float_range(array, name, stretch=False)
    elif kind in "iu":
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > 255:
            raise ImageError(
                f"{name} has {array.dtype} values from {low} to {high}; expected 0..1 or 0..255 "
                "(pass pixels, not normalised values; 16-bit images as uint16)"
            )
        return array.astype(np.uint8)
    else:
        raise ImageError(
            f"{name} has dtype {array.dtype}; expected uint8, uint16 or float; convert it first"
        )
    _add(notes, samples)
    return scaled_to_eight(array, samples)


def _add(notes: list[str], samples: SampleRange) -> None:
    if samples.note is not None and samples.note not in notes:
        notes.append(samples.note)


def _in_chunks(values: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply `convert` to some rows at a time; uint8."""
    result = np.empty(values.shape, np.uint8)
    rows = max(1, _CHUNK // max(1, values[0].size))
    for start in range(0, len(values), rows):
        result[start : start + rows] = convert(values[start : start + rows])
    return result
