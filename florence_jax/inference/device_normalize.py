"""Normalising where the pixels are needed: a quarter of the bytes cross to the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from florence_jax.processing import ImageConfig
from florence_jax.processing.pixels import channel_tables


class Normalisation:
    """uint8[N, H, W, 3] on the host -> float32[N, H, W, 3] on the device, as `preprocess_image`."""

    def __init__(self, config: ImageConfig) -> None:
        self._tables = channel_tables(config)

    def __call__(self, pixels: np.ndarray) -> jax.Array:
        return _look_up(pixels, self._tables)


@jax.jit
def _look_up(pixels: jax.Array, tables: jax.Array) -> jax.Array:
    """Looked up, not computed: devices divide and multiply in their own ways, the 256 values of
    each channel are the reference's."""
    index = pixels.astype(jnp.int32)
    return jnp.stack(
        [jnp.take(tables[channel], index[..., channel], mode="clip") for channel in range(3)], -1
    )
