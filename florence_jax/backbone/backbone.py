"""`Backbone`: a DaViT as functions of its parameters, compiled once per shape."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from florence_jax.backbone.config import BackboneConfig
from florence_jax.backbone.network import BackboneNetwork
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.matmul_precision import at_model_precision
from florence_jax.model.handle import Handle, Params, structure
from florence_jax.sharding.batch import use_mesh


@dataclass(frozen=True, kw_only=True)
class Backbone(Handle):
    """A DaViT without its weights: hashable, so it can be a static argument of `jax.jit`.

    Images may have any size of at least 1 x 1 pixels. Outputs of later stages cover 8, 16 and 32
    pixels a side; maps of odd sizes are rounded up.

    Attributes:
        config: the sizes.
        dtype, matmul_precision, layout: as in `Handle`.
    """

    config: BackboneConfig

    def __repr__(self) -> str:
        vision = self.config.vision
        mesh = "" if self.mesh is None else f", mesh {dict(self.mesh.shape)}"
        return (
            f"Backbone(DaViT of widths {vision.embed_dims} and depths {vision.depths}, "
            f"{self.config.num_classes} classes, {self.dtype}{mesh})"
        )

    def build(self, rngs: nnx.Rngs | None) -> BackboneNetwork:
        """The modules, with zeros for weights where there are no `rngs`."""
        return BackboneNetwork(self.config, dtype=self.dtype, rngs=rngs)

    def bind(self, params: Params) -> BackboneNetwork:
        """The modules with these weights in them; see `Handle.bind`."""
        return super().bind(params)

    def features(self, params: Params, images: jax.Array) -> tuple[jax.Array, ...]:
        """Feature maps of all stages.

        Args:
            params: the backbone's parameters.
            images: float[B, H, W, 3], normalised.

        Returns:
            One float[B, h, w, C] of each stage, with strides 4, 8, 16 and 32, in the backbone's
            dtype; through a layer norm each where the config has `feature_norms`.

        Raises:
            ValueError: no such images.
        """
        check_images(images, self.config.vision.in_channels)
        with use_mesh(self.mesh):
            return _features(self, params, images)

    def embed(self, params: Params, images: jax.Array) -> jax.Array:
        """Images float[B, H, W, 3] -> float32[B, C]: the last map's mean, normalised.

        timm calls it the pre-logits.

        Raises:
            ValueError: no such images.
        """
        check_images(images, self.config.vision.in_channels)
        with use_mesh(self.mesh):
            return _embed(self, params, images)

    def logits(self, params: Params, images: jax.Array) -> jax.Array:
        """Images float[B, H, W, 3] -> float32[B, classes].

        Raises:
            ValueError: no such images, or the backbone has no classifier.
        """
        check_images(images, self.config.vision.in_channels)
        with use_mesh(self.mesh):
            return _logits(self, params, images)


def check_images(images: Any, channels: int) -> None:
    """Check what a network is given, traced or not.

    Raises:
        ValueError: no float[B, H, W, channels] with at least one image and pixel.
    """
    shape, dtype = getattr(images, "shape", None), getattr(images, "dtype", None)
    if shape is None or dtype is None:
        given = f"a {type(images).__name__}"
    else:
        given = f"{dtype}{list(shape)}"
        fits = len(shape) == 4 and shape[-1] == channels and min(shape) > 0
        if fits and jnp.issubdtype(dtype, jnp.floating):
            return
    raise ValueError(
        f"images are {given}, expected normalised pixels float[B, H, W, {channels}] with at least "
        "one image and pixel; florence_jax.processing.image.crop.preprocess_crop makes them"
    )


def backbone_shapes(config: BackboneConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter."""
    tree = structure(Backbone(config=config))[1]
    return {path: leaf.shape for path, leaf in flatten(tree)}


@functools.partial(jax.jit, static_argnums=0)
@at_model_precision
def _features(backbone: Backbone, params: Params, images: jax.Array) -> tuple[jax.Array, ...]:
    return backbone.bind(params).features(images)


@functools.partial(jax.jit, static_argnums=0)
@at_model_precision
def _embed(backbone: Backbone, params: Params, images: jax.Array) -> jax.Array:
    return backbone.bind(params).embed(images)


@functools.partial(jax.jit, static_argnums=0)
@at_model_precision
def _logits(backbone: Backbone, params: Params, images: jax.Array) -> jax.Array:
    return backbone.bind(params)(images)
