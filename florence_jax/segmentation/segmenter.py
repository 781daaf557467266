"""`Segmenter`: a DaViT with UperNet's heads as functions of its parameters.

Shapes: B images, H W pixels, K classes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from flax import nnx

from florence_jax.backbone.backbone import check_images
from florence_jax.backbone.config import BackboneConfig
from florence_jax.config import ConfigError
from florence_jax.matmul_precision import at_model_precision
from florence_jax.model.davit import DaViT
from florence_jax.model.handle import Handle, Params
from florence_jax.model.layers import LayerNorm, Sequential
from florence_jax.segmentation.masks import IGNORED
from florence_jax.segmentation.upernet import AuxiliaryHead, UperNetHead, resize_maps
from florence_jax.sharding.batch import use_mesh


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig:
    """Sizes of a segmentation network.

    Attributes:
        backbone: the DaViT; its classifier is not used.
        num_classes: classes of a pixel.
        hidden_dim: width of UperNet's levels.
        pool_sizes: sides of its pyramid of pooled maps.
        auxiliary_dim: width of the auxiliary head, on the last stage but one; 0 leaves it out.
        auxiliary_weight: of its loss.
    """

    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(feature_norms=True))
    num_classes: int = 150
    hidden_dim: int = 512
    pool_sizes: tuple[int, ...] = (1, 2, 3, 6)
    auxiliary_dim: int = 256
    auxiliary_weight: float = 0.4

    def __post_init__(self) -> None:
        if type(self.num_classes) is not int or not 2 <= self.num_classes <= IGNORED:
            raise ConfigError(
                f"num_classes is {self.num_classes!r}, expected 2 to {IGNORED}: masks are images "
                f"of 8 bits, in which {IGNORED} marks pixels that do not count"
            )
        sizes = {"hidden_dim": (self.hidden_dim,), "pool_sizes": self.pool_sizes}
        for name, values in sizes.items():
            if not values or any(type(one) is not int or one < 1 for one in values):
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected integers from 1")
        if type(self.auxiliary_dim) is not int or self.auxiliary_dim < 0:
            raise ConfigError(
                f"auxiliary_dim is {self.auxiliary_dim!r}, expected an integer from 0"
            )
        if len(self.backbone.vision.embed_dims) < 2:
            raise ConfigError("UperNet needs a backbone of at least two stages")


class SegmenterNetwork(nnx.Module):
    """The modules of a `Segmenter`; activations are computed in `dtype`, logits in float32."""

    def __init__(self, config: SegmenterConfig, *, dtype: str, rngs: nnx.Rngs | None):
        self.dtype = jnp.dtype(dtype)
        dims = config.backbone.vision.embed_dims
        classes = config.num_classes
        self.vision_tower = DaViT(config.backbone.vision, rngs=rngs)
        norms = [LayerNorm(dim) for dim in dims]
        self.norms = Sequential(norms) if config.backbone.feature_norms else None
        self.decode_head = UperNetHead(
            dims, config.hidden_dim, classes, config.pool_sizes, rngs=rngs
        )
        self.auxiliary_head = (
            AuxiliaryHead(dims[-2], config.auxiliary_dim, classes, rngs=rngs)
            if config.auxiliary_dim
            else None
        )

    def __call__(
        self,
        images: jax.Array,
        *,
        rows: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """float[B, H, W, 3] -> logits float32[B, H, W, K] of both heads.

        The auxiliary head's are None where there is none, and in evaluation.

        Args:
            images: normalised.
            rows: bool[B], in training: the images whose statistics batch norms use. None for
                evaluation.
            key: turns on stochastic depth.
        """
        maps = tuple(self.vision_tower.stage_outputs(images.astype(self.dtype), key=key))
        if self.norms is not None:
            maps = tuple(norm(one) for norm, one in zip(self.norms, maps, strict=True))
        grid = images.shape[1:3]
        logits = resize_maps(self.decode_head(maps, rows), grid)
        if self.auxiliary_head is None or rows is None:
            return logits, None
        return logits, resize_maps(self.auxiliary_head(maps[-2], rows), grid)


@dataclass(frozen=True, kw_only=True)
class Segmenter(Handle):
    """A segmentation network without its weights; hashable.

    Attributes:
        config: the sizes.
        dtype, matmul_precision, layout: as in `Handle`.
    """

    config: SegmenterConfig

    def build(self, rngs: nnx.Rngs | None) -> SegmenterNetwork:
        """The modules, with zeros for weights where there are no `rngs`."""
        return SegmenterNetwork(self.config, dtype=self.dtype, rngs=rngs)

    def bind(self, params: Params) -> SegmenterNetwork:
        """The modules with these weights in them; see `Handle.bind`."""
        return super().bind(params)

    def logits(self, params: Params, images: jax.Array) -> jax.Array:
        """Images float[B, H, W, 3], normalised -> float32[B, H, W, K].

        Raises:
            ValueError: no such images.
        """
        check_images(images, self.config.backbone.vision.in_channels)
        with use_mesh(self.mesh):
            return _logits(self, params, images)

    def loss(
        self, params: Params, images: jax.Array, labels: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, Params]:
        """The training loss, for use inside a function being traced.

        Args:
            params: the segmenter's parameters.
            images: float[B, H, W, 3], normalised.
            labels: int[B, H, W], 255 where a pixel does not count.
            key: turns on stochastic depth.

        Returns:
            (loss, params): cross-entropy of both heads, the auxiliary one's times its weight; and
            the parameters with the batch norms' new running statistics.

        Raises:
            ValueError: no such images, or labels of another shape.
        """
        check_images(images, self.config.backbone.vision.in_channels)
        if labels.shape != images.shape[:3]:
            raise ValueError(
                f"labels are {list(labels.shape)}, expected a class for each pixel, "
                f"{list(images.shape[:3])}"
            )
        network = self.bind(params)
        with self.precision_scope():
            logits, auxiliary = network(images, rows=jnp.ones(len(images), bool), key=key)
        loss = pixel_loss(logits, labels)
        if auxiliary is not None:
            loss = loss + self.config.auxiliary_weight * pixel_loss(auxiliary, labels)
        return loss, nnx.to_pure_dict(nnx.state(network))


def start_from_backbone(
    config: SegmenterConfig, backbone_params: Params, key: jax.Array
) -> tuple[Segmenter, Params]:
    """A segmenter on a trained backbone; its heads are drawn at random.

    Args:
        config: its `backbone` must be the one that the parameters belong to.
        backbone_params: of `load_backbone`; the classifier is left out.
        key: of the heads.
    """
    segmenter = Segmenter(config=config)
    params = segmenter.init(key)
    for part in ("vision_tower", "norms"):
        if part in params and part in backbone_params:
            params[part] = backbone_params[part]
    segmenter.bind(params)  # the backbone is of these sizes
    return segmenter, params


def pixel_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy over the pixels that count: float[B, H, W, K], int[B, H, W] -> float."""
    counted = labels != IGNORED
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    chosen = jnp.take_along_axis(log_probs, jnp.where(counted, labels, 0)[..., None], axis=-1)
    total = -jnp.sum(jnp.where(counted, chosen[..., 0], 0.0))
    return total / jnp.maximum(counted.sum(), 1)


@functools.partial(jax.jit, static_argnums=0)
@at_model_precision
def _logits(segmenter: Segmenter, params: Params, images: jax.Array) -> jax.Array:
    return segmenter.bind(params)(images)[0]
