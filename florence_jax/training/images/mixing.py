"""Mixup and random erasing of a batch on the device, with timm's semantics.

Shapes: B images, H W pixels, C channels, T attempts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from florence_jax.training.images.config import MixConfig

# Rectangles that are drawn until one fits.
_ATTEMPTS = 10


class Mixed(NamedTuple):
    """A batch whose images may be mixed with each other.

    Attributes:
        images: float32[B, H, W, C].
        labels: int[B], each image's own class.
        others: int[B], the class of the image mixed into it.
        share: float32[B], what the own image and class weigh; 1 where nothing is mixed.
    """

    images: jax.Array
    labels: jax.Array
    others: jax.Array
    share: jax.Array


def change_batch(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    counted: jax.Array,
    config: MixConfig,
    partners: tuple[int, ...] = (),
) -> Mixed:
    """Erase rectangles, then mix.

    Args:
        key: the micro-batch's.
        images: float32[B, H, W, C], normalised.
        labels: int[B].
        counted: bool[B]; rows without a label are not mixed into others.
        config: the settings.
        partners: as for `mix`.
    """
    erase_key, mix_key = jax.random.split(key)
    if config.erasing:
        images = erase(erase_key, images, config)
    share = jnp.ones(())
    if config.mixup:
        share_key, chance_key = jax.random.split(mix_key)
        drawn = jax.random.beta(share_key, config.mixup, config.mixup)
        mixes = jax.random.uniform(chance_key) < config.mixup_prob
        share = jnp.where(mixes, drawn, 1.0)
    return mix(images, labels, counted, share, partners)


def mix(
    images: jax.Array,
    labels: jax.Array,
    counted: jax.Array,
    share: jax.Array,
    partners: tuple[int, ...] = (),
) -> Mixed:
    """Mix each image with that of the reversed batch: `share` of its own, the rest of the other.

    Args:
        images: float32[B, H, W, C].
        labels: int[B].
        counted: bool[B].
        share: float32[].
        partners: the row that each row is mixed with, where rows fill up the batch. Empty for the
            reversed batch, which a mesh need not gather.
    """
    other = np.array(partners) if partners else slice(None, None, -1)
    shares = jnp.where(counted & counted[other], share, 1.0).astype(jnp.float32)
    weight = shares[:, None, None, None]
    return Mixed(weight * images + (1 - weight) * images[other], labels, labels[other], shares)


def reversed_rows(places: Sequence[int], total: int) -> tuple[int, ...]:
    """`partners` of a batch of `total` rows whose images are at `places`; others stay alone."""
    partners = list(range(total))
    for place, other in zip(places, reversed(places), strict=True):
        partners[place] = other
    return tuple(partners)


def erase(key: jax.Array, images: jax.Array, config: MixConfig) -> jax.Array:
    """Replace a random rectangle of some images by noise, or by the mean colour.

    Args:
        key: of the rectangles and the noise.
        images: float32[B, H, W, C], normalised: the mean colour is 0, and noise has deviation 1.
        config: the settings.
    """
    count, height, width, _ = images.shape
    chance_key, box_key, noise_key = jax.random.split(key, 3)
    chosen = jax.random.uniform(chance_key, (count,)) < config.erasing
    draws = jax.random.uniform(box_key, (count, _ATTEMPTS, 4))
    inside = jax.vmap(lambda one: rectangle(one, (height, width), config))(draws)
    filler = jax.random.normal(noise_key, images.shape) if config.erasing_noise else 0.0
    return jnp.where((inside & chosen[:, None, None])[..., None], filler, images)


def rectangle(draws: jax.Array, size: tuple[int, int], config: MixConfig) -> jax.Array:
    """The first of several rectangles that is smaller than the image, as bool[H, W].

    Args:
        draws: float32[T, 4], uniform in [0, 1): area, aspect, top and left of each attempt.
        size: (H, W).
        config: areas and aspects.
    """
    height, width = size
    low, high = config.erasing_area
    narrow = math.log(config.erasing_aspect)
    area = (low + (high - low) * draws[:, 0]) * height * width
    aspect = jnp.exp(narrow - 2 * narrow * draws[:, 1])
    rows, columns = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (rows < height) & (columns < width)
    first = jnp.argmax(fits)
    rows, columns = rows[first], columns[first]
    top = jnp.floor(draws[first, 2] * (height - rows + 1))
    left = jnp.floor(draws[first, 3] * (width - columns + 1))
    y, x = jnp.arange(height)[:, None], jnp.arange(width)
    inside = (y >= top) & (y < top + rows) & (x >= left) & (x < left + columns)
    return inside & fits.any()
