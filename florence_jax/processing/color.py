"""Every pixel format a user may hand over -> 8-bit RGB.

Florence-2 was trained on 8-bit RGB. The rules, one per kind of input: transparency is composited
over white (paper, screenshots and diagrams are drawn on white); 16-bit values are scaled, v / 257
rounded, never clipped; floats are 0..1 or 0..255; anything else is PIL's own conversion.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from florence_jax.processing.errors import ImageError


def image_to_rgb(image: Image.Image, name: str) -> Image.Image:
    """A new RGB image from a PIL image of any mode.

    Modes I and F carry no declared range: I is read as 16-bit when it fits, F as 0..1 or 0..255
    when it fits; any other range is stretched from its minimum to its maximum.

    Raises:
      ImageError: values that are not finite.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray(_sixteen_to_eight(np.asarray(image))).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_undeclared_to_eight(np.asarray(image), name)).convert("RGB")
    if image.has_transparency_data:
        # PIL has no direct way from premultiplied grey.
        return _over_white((image.convert("LA") if image.mode == "La" else image).convert("RGBA"))
    if image.mode == "RGB":
        return image.copy()
    return image.convert("RGB")


def array_to_rgb(array: np.ndarray, name: str) -> Image.Image:
    """An RGB image from an array [H, W] or [H, W, 1 | 3 | 4].

    bool, uint8 and integers within 0..255 are 8-bit; uint16 is 16-bit full range; floats are 0..1
    when nothing exceeds 1, otherwise 0..255.

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
    eight = np.ascontiguousarray(_array_to_eight(array, name))
    image = Image.fromarray(eight)
    return _over_white(image) if image.mode == "RGBA" else image.convert("RGB")


def _over_white(rgba: Image.Image) -> Image.Image:
    paper = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(paper, rgba).convert("RGB")


def _sixteen_to_eight(values: np.ndarray) -> np.ndarray:
    """uint8 of round(v / 257), which maps 0..65535 onto 0..255 evenly."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _undeclared_to_eight(values: np.ndarray, name: str) -> np.ndarray:
    low, high = _finite_range(values, name)
    if values.dtype.kind == "i" and low >= 0 and high <= 65535:
        return _sixteen_to_eight(values)
    if values.dtype.kind == "f" and low >= 0 and high <= 255:
        return _float_to_eight(values, high)
    if high == low:
        return np.zeros(values.shape, np.uint8)
    stretched = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(stretched).astype(np.uint8)


def _array_to_eight(array: np.ndarray, name: str) -> np.ndarray:
    kind = array.dtype.kind
    if array.dtype == np.uint8:
        return array
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return _sixteen_to_eight(array)
    if kind not in "iuf":
        raise ImageError(
            f"{name} has dtype {array.dtype}; expected uint8, uint16 or float; convert it first"
        )
    low, high = _finite_range(array, name)
    if low < 0 or high > 255:
        raise ImageError(
            f"{name} has {array.dtype} values from {low:g} to {high:g}; expected 0..1 or 0..255 "
            "(pass pixels, not normalised values; 16-bit images as uint16)"
        )
    return _float_to_eight(array, high) if kind == "f" else array.astype(np.uint8)


def _float_to_eight(values: np.ndarray, high: float) -> np.ndarray:
    scale = 255.0 if high <= 1 else 1.0
    return np.rint(values.astype(np.float64) * scale).astype(np.uint8)


def _finite_range(values: np.ndarray, name: str) -> tuple[float, float]:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ImageError(f"{name} holds NaN or infinite values; replace them before passing it")
    return float(values.min()), float(values.max())
