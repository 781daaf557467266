"""DaViT with a classifier and norms of its feature maps.

Shapes: B images, H W pixels, h w grid of a stage, C channels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from florence_jax.backbone.config import BackboneConfig
from florence_jax.model.davit import DaViT
from florence_jax.model.layers import LayerNorm, Linear, Sequential


class Classifier(nnx.Module):
    """Mean over the map, layer norm, linear layer; in float32 throughout."""

    def __init__(self, dim: int, num_classes: int, *, rngs: nnx.Rngs | None):
        self.norm = LayerNorm(dim)
        self.fc = Linear(dim, num_classes, rngs=rngs) if num_classes else None

    def embed(self, x_BHWC: jax.Array) -> jax.Array:
        """float[B, h, w, C] -> float32[B, C]."""
        return self.norm(x_BHWC.mean((1, 2), dtype=jnp.float32))


class BackboneNetwork(nnx.Module):
    """The modules of a `Backbone`; activations are computed in `dtype`."""

    def __init__(self, config: BackboneConfig, *, dtype: str, rngs: nnx.Rngs | None):
        self.dtype = jnp.dtype(dtype)
        dims = config.vision.embed_dims
        self.vision_tower = DaViT(config.vision, rngs=rngs)
        self.norms = Sequential([LayerNorm(dim) for dim in dims]) if config.feature_norms else None
        self.head = Classifier(dims[-1], config.num_classes, rngs=rngs)

    def features(self, images: jax.Array, *, key: jax.Array | None = None) -> tuple[jax.Array, ...]:
        """float[B, H, W, 3] -> float[B, h, w, C] of each stage, normalised if there are norms."""
        maps = self.vision_tower.stage_outputs(images.astype(self.dtype), key=key)
        if self.norms is None:
            return tuple(maps)
        return tuple(norm(one) for norm, one in zip(self.norms, maps, strict=True))

    def embed(self, images: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """float[B, H, W, 3] -> float32[B, C], what the linear layer of the classifier takes."""
        return self.head.embed(self.vision_tower(images.astype(self.dtype), key=key))

    def __call__(self, images: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """float[B, H, W, 3] -> float32[B, classes]."""
        if self.head.fc is None:
            raise ValueError(
                "this backbone has no classifier: load it with num_classes=N, which adds an "
                "untrained one, or use embed or features"
            )
        return self.head.fc(self.embed(images, key=key))
