"""What runs of image networks minimise.

Shapes: B images, H W pixels, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from flax import nnx

from florence_jax.backbone.backbone import Backbone
from florence_jax.checkpoint.param_tree import flatten, unflatten
from florence_jax.processing.image.pixels import ImageConfig
from florence_jax.segmentation.segmenter import Segmenter
from florence_jax.training.images.config import MixConfig
from florence_jax.training.images.mixing import Mixed, change_batch
from florence_jax.training.losses import IGNORE, TokenSums
from florence_jax.training.settings import LoraConfig, Remat
from florence_jax.training.state import Batch, Flat
from florence_jax.training.step import rematerialise_tower


@dataclass(frozen=True, kw_only=True)
class ClassifyObjective:
    """Cross-entropy of a classifier.

    Attributes:
        model: the network.
        image: how uint8 pixels are normalised.
        label_smoothing: share of the label's probability spread evenly over all classes.
        mix: changes of training batches.
        partners: as for `mixing.mix`.
        remat: activations that the backward pass recomputes.
        lora: no adapters.
    """

    model: Backbone
    image: ImageConfig
    label_smoothing: float = 0.0
    mix: MixConfig = field(default_factory=MixConfig)
    partners: tuple[int, ...] = ()
    remat: Remat = "none"
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __call__(self, params: Flat, batch: Batch, key: jax.Array | None) -> TokenSums:
        """Sums over the images uint8[B, H, W, 3] with a label int[B, 1]."""
        labels = batch.labels[:, 0]
        counted = labels != IGNORE
        labels = jnp.where(counted, labels, 0)
        images = normalised(batch.images, self.image)
        mixed = Mixed(images, labels, labels, jnp.ones(labels.shape))
        if key is not None:
            mix_key = jax.random.fold_in(key, 1)
            mixed = change_batch(mix_key, images, labels, counted, self.mix, self.partners)
        network = self.model.bind(unflatten(params))
        rematerialise_tower(network.vision_tower, self.remat)
        return class_sums(network(mixed.images, key=key), mixed, counted, self.label_smoothing)

    def and_statistics(self, params: Flat, batch: Batch, key: jax.Array) -> tuple[TokenSums, Flat]:
        """Sums in training; the network has no statistics."""
        return self(params, batch, key), {}


def class_sums(
    logits: jax.Array, mixed: Mixed, counted: jax.Array, label_smoothing: float
) -> TokenSums:
    """Sums of the soft cross-entropy of images whose labels are mixed as they are.

    An image counts as right where the heavier of its two classes has the largest logit.

    Args:
        logits: float32[B, K].
        mixed: the classes and their shares.
        counted: bool[B], images with a label.
        label_smoothing: share of each label spread over all classes.
    """
    log_probs = jax.nn.log_softmax(logits)
    own, other = (
        jnp.take_along_axis(log_probs, one[:, None], axis=1)[:, 0]
        for one in (mixed.labels, mixed.others)
    )
    nll = -(mixed.share * own + (1 - mixed.share) * other)
    loss = (1 - label_smoothing) * nll - label_smoothing * log_probs.mean(-1)
    right = logits.argmax(-1) == jnp.where(mixed.share >= 0.5, mixed.labels, mixed.others)

    def total(values: jax.Array) -> jax.Array:
        return jnp.where(counted, values, 0.0).sum()

    return TokenSums(total(loss), total(nll), total(right), total(counted))


@dataclass(frozen=True, kw_only=True)
class SegmentObjective:
    """Cross-entropy of a segmentation network's pixels, with that of its auxiliary head.

    Attributes:
        model: the network.
        image: how uint8 pixels are normalised.
        remat: activations that the backward pass recomputes.
        lora: no adapters.
    """

    model: Segmenter
    image: ImageConfig
    remat: Remat = "none"
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __call__(self, params: Flat, batch: Batch, key: jax.Array | None) -> TokenSums:
        """Sums over the pixels of uint8[B, H, W, 3] with a label int[B, H * W].

        Without a key, batch norms use their running statistics and the auxiliary head has no part.
        """
        if key is not None:
            return self.and_statistics(params, batch, key)[0]
        network = self.model.bind(unflatten(params))
        logits, _ = network(normalised(batch.images, self.image))
        return pixel_sums(logits, _on_grid(batch))

    def and_statistics(self, params: Flat, batch: Batch, key: jax.Array) -> tuple[TokenSums, Flat]:
        """Sums in training, and the batch norms' new running statistics."""
        network = self.model.bind(unflatten(params))
        rematerialise_tower(network.vision_tower, self.remat)
        images = normalised(batch.images, self.image)
        labels = _on_grid(batch)
        # An unusable image is black, and so are the rows that fill up a batch.
        rows = (labels != IGNORE).any((1, 2))
        logits, auxiliary = network(images, rows=rows, key=key)
        sums = pixel_sums(logits, labels)
        if auxiliary is not None:
            more = self.model.config.auxiliary_weight * pixel_sums(auxiliary, labels).loss
            sums = sums._replace(loss=sums.loss + more)
        leaves = flatten(nnx.to_pure_dict(nnx.state(network)))
        return sums, {path: leaf for path, leaf in leaves if path.endswith(("/mean", "/var"))}


def pixel_sums(logits: jax.Array, labels: jax.Array) -> TokenSums:
    """Sums of the cross-entropy: float32[B, H, W, K] and int[B, H, W], `IGNORE` does not count."""
    counted = labels != IGNORE
    labels = jnp.where(counted, labels, 0)
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    nll = -jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]

    def total(values: jax.Array) -> jax.Array:
        return jnp.where(counted, values, 0.0).sum()

    right = logits.argmax(-1) == labels
    return TokenSums(total(nll), total(nll), total(right), total(counted))


def normalised(images: jax.Array, config: ImageConfig) -> jax.Array:
    """uint8[B, H, W, 3] -> normalised float32."""
    mean, std = jnp.asarray(config.mean, jnp.float32), jnp.asarray(config.std, jnp.float32)
    return (images.astype(jnp.float32) * config.rescale - mean) / std


def _on_grid(batch: Batch) -> jax.Array:
    return batch.labels.reshape(batch.images.shape[:3])
