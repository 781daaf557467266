"""UperNet's heads: pyramid pooling, a feature pyramid, and an auxiliary head.

Shapes: B images, h w grid of a stage, C channels, K classes. In training, `rows` bool[B] are the
images whose statistics batch norms use; without them, batch norms use their running statistics.
Source: "Unified Perceptual Parsing for Scene Understanding", https://arxiv.org/abs/1807.10221, with
the parameters of transformers' `UperNetForSemanticSegmentation`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from florence_jax.model.layers import Conv, Sequential

# torch's defaults.
_MOMENTUM, _EPSILON = 0.1, 1e-5


class BatchNorm(nnx.Module):
    """Batch norm over all axes but the last, in float32.

    In training it normalises by the batch's `rows`, and replaces its running `mean` and `var`,
    which are read back from the module after the call. On a mesh the batch is that of all devices.
    """

    def __init__(self, dim: int):
        self.scale = nnx.Param(jnp.ones((dim,)))
        self.bias = nnx.Param(jnp.zeros((dim,)))
        self.mean = nnx.BatchStat(jnp.zeros((dim,)))
        self.var = nnx.BatchStat(jnp.ones((dim,)))

    def __call__(self, x: jax.Array, rows: jax.Array | None = None) -> jax.Array:
        values = x.astype(jnp.float32)
        mean, var = self.mean[...], self.var[...]
        if rows is not None:
            axes = tuple(range(x.ndim - 1))
            weight = rows.reshape(-1, *[1] * (x.ndim - 1)).astype(jnp.float32)
            count = weight.sum() * (x[0].size // x.shape[-1])
            some = jnp.maximum(count, 1)
            mean = (weight * values).sum(axes) / some
            var = (weight * jnp.square(values - mean)).sum(axes) / some
            # torch keeps the unbiased variance, and normalises by the biased one.
            unbiased = var * (some / jnp.maximum(some - 1, 1))
            for stat, new in ((self.mean, mean), (self.var, unbiased)):
                moved = (1 - _MOMENTUM) * stat[...] + _MOMENTUM * new
                stat[...] = jax.lax.stop_gradient(jnp.where(count > 0, moved, stat[...]))
        gain = self.scale[...] * jax.lax.rsqrt(var + _EPSILON)
        return ((values - mean) * gain + self.bias[...]).astype(x.dtype)


class ConvNormRelu(nnx.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, in_dim: int, out_dim: int, *, size: int, rngs: nnx.Rngs | None):
        self.conv = Conv(
            in_dim, out_dim, size=size, stride=1, padding=size // 2, use_bias=False, rngs=rngs
        )
        self.norm = BatchNorm(out_dim)

    def __call__(self, x_BHWC: jax.Array, rows: jax.Array | None = None) -> jax.Array:
        return jax.nn.relu(self.norm(self.conv(x_BHWC), rows))


class PixelClassifier(nnx.Module):
    """A 1 x 1 convolution with float32 outputs."""

    def __init__(self, dim: int, num_classes: int, *, rngs: nnx.Rngs | None):
        self.conv = Conv(dim, num_classes, size=1, stride=1, padding=0, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        return self.conv(x_BHWC.astype(jnp.float32))


class UperNetHead(nnx.Module):
    """Feature maps of all stages -> logits on the grid of the first."""

    def __init__(
        self,
        in_dims: Sequence[int],
        hidden_dim: int,
        num_classes: int,
        pool_sizes: Sequence[int],
        *,
        rngs: nnx.Rngs | None,
    ):
        last = in_dims[-1]
        self.pool_sizes = tuple(pool_sizes)

        def conv(in_dim: int, size: int) -> ConvNormRelu:
            return ConvNormRelu(in_dim, hidden_dim, size=size, rngs=rngs)

        self.pools = Sequential([conv(last, 1) for _ in self.pool_sizes])
        self.bottleneck = conv(last + len(self.pool_sizes) * hidden_dim, 3)
        self.laterals = Sequential([conv(dim, 1) for dim in in_dims[:-1]])
        self.pyramid = Sequential([conv(hidden_dim, 3) for _ in in_dims[:-1]])
        self.fusion = conv(len(in_dims) * hidden_dim, 3)
        self.classifier = PixelClassifier(hidden_dim, num_classes, rngs=rngs)

    def __call__(self, maps: Sequence[jax.Array], rows: jax.Array | None = None) -> jax.Array:
        """float[B, h, w, C] of each stage -> float32[B, h, w, K] on the first stage's grid."""
        *finer, last = maps
        levels = [conv(one, rows) for conv, one in zip(self.laterals, finer, strict=True)]
        levels.append(self._pool(last, rows))
        for number in range(len(levels) - 1, 0, -1):
            above = levels[number - 1]
            levels[number - 1] = above + resize_maps(levels[number], above.shape[1:3])
        *finer, coarsest = levels
        outputs = [conv(one, rows) for conv, one in zip(self.pyramid, finer, strict=True)]
        grid = outputs[0].shape[1:3]
        outputs = [resize_maps(one, grid) for one in (*outputs, coarsest)]
        return self.classifier(self.fusion(jnp.concatenate(outputs, axis=-1), rows))

    def _pool(self, x_BHWC: jax.Array, rows: jax.Array | None) -> jax.Array:
        parts = [x_BHWC]
        for conv, size in zip(self.pools, self.pool_sizes, strict=True):
            pooled = conv(pool_to(x_BHWC, size), rows)
            parts.append(resize_maps(pooled, x_BHWC.shape[1:3]))
        return self.bottleneck(jnp.concatenate(parts, axis=-1), rows)


class AuxiliaryHead(nnx.Module):
    """One stage's map -> logits on its grid, for a second loss in training."""

    def __init__(self, in_dim: int, hidden_dim: int, num_classes: int, *, rngs: nnx.Rngs | None):
        self.hidden = ConvNormRelu(in_dim, hidden_dim, size=3, rngs=rngs)
        self.classifier = PixelClassifier(hidden_dim, num_classes, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array, rows: jax.Array | None = None) -> jax.Array:
        """float[B, h, w, C] -> float32[B, h, w, K]."""
        return self.classifier(self.hidden(x_BHWC, rows))


def resize_maps(x_BHWC: jax.Array, grid: tuple[int, ...]) -> jax.Array:
    """Bilinear resize to (rows, columns), as torch's `interpolate` without aligned corners."""
    if x_BHWC.shape[1:3] == tuple(grid):
        return x_BHWC
    shape = (x_BHWC.shape[0], *grid, x_BHWC.shape[-1])
    return jax.image.resize(x_BHWC, shape, method="bilinear", antialias=False)


def pool_to(x_BHWC: jax.Array, size: int) -> jax.Array:
    """Mean over `size` x `size` parts of a map, which overlap where `size` does not divide it."""
    rows, columns = (jnp.asarray(_parts(side, size), x_BHWC.dtype) for side in x_BHWC.shape[1:3])
    return jnp.einsum("bhwc,rh,sw->brsc", x_BHWC, rows, columns)


def _parts(side: int, size: int) -> np.ndarray:
    """float32[size, side]: the weights of each part's mean, torch's adaptive pooling."""
    weights = np.zeros((size, side), np.float32)
    for part in range(size):
        start, stop = part * side // size, -(-(part + 1) * side // size)
        weights[part, start:stop] = 1 / (stop - start)
    return weights
