"""Masks of classes as PNG files: read, checked against their image, written, drawn.

A mask is an image of 8 bits with one class for each pixel; 255 marks pixels that do not count.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from florence_jax.processing import ImageError
from florence_jax.processing.image.formats import decoding_error, no_pil_limit

IGNORED = 255


def read_mask(
    path: str | Path, *, num_classes: int, size: tuple[int, int], reduce_zero_label: bool = False
) -> np.ndarray:
    """The classes of a PNG mask, int32[H, W].

    Args:
        path: an image of 8 bits, grey or with a palette.
        num_classes: classes of the data set.
        size: (height, width) of the image that the mask belongs to.
        reduce_zero_label: 0 stands for what does not count and class n for n - 1, as in ADE20K.

    Raises:
        ImageError: no image, another mode, another size than the image's, or a class out of range.
    """
    mask = read_indices(path, size).astype(np.int32)
    if reduce_zero_label:
        mask = np.where((mask == 0) | (mask == IGNORED), IGNORED, mask - 1)
    beyond = mask[(mask >= num_classes) & (mask != IGNORED)]
    if beyond.size:
        raise ImageError(
            f"{path} has class {beyond.max()}, expected 0 to {num_classes - 1}, or {IGNORED} for "
            "pixels that do not count"
        )
    return mask


def read_indices(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """The bytes of a mask, uint8[H, W]; the header is checked before anything is decoded.

    Args:
        path: an image of 8 bits, grey or with a palette.
        size: (height, width) of the image that the mask belongs to; None for any.

    Raises:
        ImageError: as `read_mask`.
    """
    try:
        with no_pil_limit():
            picture = Image.open(path)
        with picture:
            mode, found = picture.mode, (picture.height, picture.width)
            if mode not in ("L", "P"):
                raise ImageError(
                    f"{path} is an image of mode {mode}, expected a mask of 8 bits (mode L or P) "
                    "with a class for each pixel"
                )
            if size is not None and found != tuple(size):
                turned = found == tuple(size[::-1])
                raise ImageError(
                    f"{path} has {found[0]} x {found[1]} pixels, its image {size[0]} x {size[1]}"
                    + (" (upright, by its EXIF orientation if it has one)" if turned else "")
                )
            return np.asarray(picture)
    # PIL raises nearly every type for a damaged file.
    except Exception as error:
        raise decoding_error(str(path), error) from error


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """Write classes int[H, W] as a PNG with a palette, which viewers show in colours.

    Raises:
        ValueError: a class that 8 bits cannot hold.
    """
    if mask.min() < 0 or mask.max() > IGNORED:
        raise ValueError(
            f"a mask for {path} has classes from {mask.min()} to {mask.max()}, expected 0 to "
            f"{IGNORED - 1}, or {IGNORED} for pixels that do not count"
        )
    picture = Image.fromarray(mask.astype(np.uint8), "P")
    picture.putpalette(palette().tobytes())
    picture.save(path, "PNG")


def draw_mask(
    image: Image.Image, mask: np.ndarray, *, opacity: float = 0.6, shown: Sequence[int] = ()
) -> Image.Image:
    """`image` with the colours of `mask` over it.

    Args:
        image: RGB, of the mask's size.
        mask: int[H, W].
        opacity: of the colours.
        shown: the classes to draw; all where it is empty.

    Raises:
        ValueError: the sizes differ.
    """
    if mask.shape != image.size[::-1]:
        height, width = mask.shape
        raise ValueError(
            f"the mask is {width} x {height} pixels, its image {image.size[0]} x {image.size[1]}"
        )
    picture = np.asarray(image.convert("RGB"), np.float32)
    drawn = mask != IGNORED
    if shown:
        drawn &= np.isin(mask, list(shown))
    mixed = (1 - opacity) * picture + opacity * palette()[mask]
    return Image.fromarray(np.where(drawn[..., None], mixed, picture).round().astype(np.uint8))


def palette() -> np.ndarray:
    """uint8[256, 3]: a colour for each class; neighbours differ, 255 is black."""
    # Steps of the golden ratio around the circle of hues.
    hues = (np.arange(IGNORED) * 0.618034) % 1.0
    values = (1.0, 0.75, 0.9, 0.6)
    colours = [colorsys.hsv_to_rgb(hue, 0.85, values[n % 4]) for n, hue in enumerate(hues)]
    return np.rint(255 * np.array([*colours, (0.0, 0.0, 0.0)])).astype(np.uint8)
