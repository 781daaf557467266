"""Preprocess an RGB image for a classifier: resize, crop the centre, normalise, as timm does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from florence_jax.processing.image import ImageError
from florence_jax.processing.image.load import MAX_PIXELS, load_image
from florence_jax.processing.image.pixels import (
    BICUBIC,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageConfig,
    normalised,
    resize_image,
)

CropMode = Literal["center", "squash"]


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """Preprocessing settings of a classifier.

    Attributes:
        size: (height, width) in pixels of what the network sees.
        crop_pct: share of the resized image's side that is kept; 1 keeps all of it.
        crop_mode: "center" keeps the aspect and cuts what is beyond the crop; "squash" does not
            keep it, as Florence-2 does.
        mean, std: per RGB channel, on values from 0 to 1.
        resample: PIL's resampling filter, 3 is bicubic.
    """

    size: tuple[int, int] = (224, 224)
    crop_pct: float = 0.95
    crop_mode: CropMode = "center"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resample: int = BICUBIC

    def __post_init__(self) -> None:
        self.pixels  # noqa: B018 - checks size, mean, std and resample
        if not isinstance(self.crop_pct, int | float) or not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct is {self.crop_pct!r}, expected a number above 0, at most 1")
        if self.crop_mode not in ("center", "squash"):
            raise ValueError(f"crop_mode is {self.crop_mode!r}, expected 'center' or 'squash'")

    @property
    def pixels(self) -> ImageConfig:
        """The settings without the crop."""
        return ImageConfig(size=self.size, mean=self.mean, std=self.std, resample=self.resample)


def preprocess_crop(image: Any, config: CropConfig) -> np.ndarray:
    """Preprocess one image to normalised pixels, float32[H, W, 3].

    Args:
        image: anything `load_image` takes; loaded with its defaults (EXIF orientation applied).
        config: the settings.

    Raises:
        ImageError: an image that cannot be loaded.
    """
    return normalised(crop_picture(load_image(image), config), config.pixels)


def crop_picture(picture: Image.Image, config: CropConfig) -> Image.Image:
    """An RGB image resized and cropped, before its pixels are normalised.

    Raises:
        ImageError: an image so narrow that resizing it would take too much memory.
    """
    height, width = config.size
    size = _resized_size(picture.size, config)
    if math.prod(size) > MAX_PIXELS:
        raise ImageError(
            f"an image of {picture.width}x{picture.height} pixels would be resized to "
            f"{size[0]}x{size[1]} before its centre is cropped: cut it to a squarer part first"
        )
    resized = resize_image(picture, size, config.resample)
    left, top = round((resized.width - width) / 2), round((resized.height - height) / 2)
    return resized.crop((left, top, left + width, top + height))


def _resized_size(size: tuple[int, int], config: CropConfig) -> tuple[int, int]:
    """(width, height) before the crop, of an image of `size` (width, height)."""
    width, height = size
    tall, wide = (math.floor(side / config.crop_pct) for side in config.size)
    if config.crop_mode == "squash":
        return wide, tall
    if tall == wide:  # the shorter side becomes `tall`, the other is rounded down
        short = min(width, height)
        return int(tall * width / short), int(tall * height / short)
    ratio = min(width / wide, height / tall)
    return round(width / ratio), round(height / ratio)
