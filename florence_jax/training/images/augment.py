"""Random crops, mirrors and colours of training images, and of masks with them."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageEnhance

from florence_jax.processing.image.pixels import resize_image
from florence_jax.segmentation.masks import IGNORED
from florence_jax.segmentation.segment_image import cover
from florence_jax.training.images.config import ImageAugmentConfig

_ATTEMPTS = 10


def random_crop(
    image: Image.Image,
    size: tuple[int, int],
    config: ImageAugmentConfig,
    resample: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """A crop of a random area and aspect, resized, mirrored and shaded: uint8[H, W, 3].

    As torchvision's `RandomResizedCrop`: where ten crops do not fit, the largest central one of an
    aspect within `config.ratio` is taken.

    Args:
        image: RGB.
        size: (height, width) of the result.
        config: the settings.
        resample: PIL's resampling filter.
        rng: of the row and the epoch.
    """
    left, top, width, height = _window(image.size, config, rng)
    cut = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(resize_image(_shaded(cut, config, rng), (size[1], size[0]), resample))
    return pixels[:, ::-1] if rng.random() < config.flip else pixels


def random_crop_with_mask(
    image: Image.Image,
    mask: np.ndarray,
    size: tuple[int, int],
    config: ImageAugmentConfig,
    resample: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """A crop at a random scale: uint8[H, W, 3], and its classes int32[H, W].

    At scale 1 the image just covers the crop. What is beyond a smaller image is black, and does not
    count.

    Args:
        image: RGB.
        mask: int32 classes of its pixels.
        size: (H, W) of the crop.
        config: the settings.
        resample: PIL's resampling filter of the image; classes are never mixed.
        rng: of the row and the epoch.
    """
    scale = rng.uniform(*config.scale) * cover(image.size, size)
    width, height = (max(round(scale * side), 1) for side in image.size)
    pixels = np.asarray(_shaded(resize_image(image, (width, height), resample), config, rng))
    classes = resize_mask(mask, (height, width))
    if rng.random() < config.flip:
        pixels, classes = pixels[:, ::-1], classes[:, ::-1]
    missing = [max(side - have, 0) for side, have in zip(size, (height, width), strict=True)]
    padding = [(0, more) for more in missing]
    pixels = np.pad(pixels, (*padding, (0, 0)))
    classes = np.pad(classes, padding, constant_values=IGNORED)
    top, left = (
        int(rng.integers(have - side + 1)) for have, side in zip(classes.shape, size, strict=True)
    )
    place = slice(top, top + size[0]), slice(left, left + size[1])
    return pixels[place], classes[place]


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Classes at another size (height, width), each pixel's from the nearest: int32."""
    picture = Image.fromarray(mask.astype(np.uint8))
    resized = picture.resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized).astype(np.int32)


def _window(
    size: tuple[int, int], config: ImageAugmentConfig, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """left, top, width and height of a crop of an image of (width, height)."""
    width, height = size
    low, high = (math.log(ratio) for ratio in config.ratio)
    for _ in range(_ATTEMPTS):
        area = rng.uniform(*config.scale) * width * height
        ratio = math.exp(rng.uniform(low, high))
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            left, top = rng.integers(width - wide + 1), rng.integers(height - tall + 1)
            return int(left), int(top), wide, tall
    aspect = min(max(width / height, config.ratio[0]), config.ratio[1])
    wide = min(width, max(round(height * aspect), 1))
    tall = min(height, max(round(width / aspect), 1))
    return (width - wide) // 2, (height - tall) // 2, wide, tall


def _shaded(
    image: Image.Image, config: ImageAugmentConfig, rng: np.random.Generator
) -> Image.Image:
    # Drawn whether used or not, so that one setting does not change another's random numbers.
    shades = 1.0 + config.colour * (2.0 * rng.random(3) - 1.0)
    if not config.colour:
        return image
    for enhancer, shade in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), shades, strict=True
    ):
        image = enhancer(image).enhance(float(shade))
    return image
