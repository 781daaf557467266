"""The class of each pixel of an image of any size."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from PIL import Image

from florence_jax.model.handle import Params
from florence_jax.processing.image.pixels import normalised, resize_image
from florence_jax.segmentation.segmenter import Segmenter
from florence_jax.segmentation.sliding_window import sliding_logits


def segment_image(
    segmenter: Segmenter | Any,
    params: Params,
    picture: Image.Image,
    *,
    stride: tuple[int, int] | None = None,
    whole: bool = False,
    batch_size: int = 4,
) -> np.ndarray:
    """The class of each pixel, by overlapping windows.

    The image is resized until it just covers a window of the size that the segmenter was trained
    at, and the logits back to the image's own size.

    Args:
        segmenter: the network, or whatever has its `logits` and `config`.
        params: its parameters.
        picture: RGB.
        stride: (rows, columns) from one window to the next; by default two thirds of a window.
        whole: the resized image is one window, of any size; each shape compiles a program.
        batch_size: windows in one call.

    Returns:
        int[H, W].

    Raises:
        ValueError: a stride for the whole image, or one beyond the window.
    """
    if whole and stride is not None:
        raise ValueError(f"stride is {stride}, but the whole image is one window: leave it out")
    image = segmenter.config.backbone.image
    scale = cover(picture.size, image.size)
    width, height = (
        max(round(scale * side), least)
        for side, least in zip(picture.size, image.size[::-1], strict=True)
    )
    resized = resize_image(picture, (width, height), image.resample)
    window = (height, width) if whole else image.size
    logits = sliding_logits(
        segmenter,
        params,
        normalised(resized, image.pixels),
        window=window,
        stride=stride or (-(-2 * window[0] // 3), -(-2 * window[1] // 3)),
        batch_size=1 if whole else batch_size,
    )
    if resized.size != picture.size:
        shape = (*picture.size[::-1], logits.shape[-1])
        logits = jax.image.resize(logits, shape, method="bilinear", antialias=False)
    return np.asarray(logits.argmax(-1))


def cover(image_size: tuple[int, int], size: tuple[int, int]) -> float:
    """The factor at which an image of (width, height) just covers (height, width)."""
    width, height = image_size
    return max(size[0] / height, size[1] / width)
