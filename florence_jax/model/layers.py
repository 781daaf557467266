"""The few layers that Florence-2 is built from, with torch's defaults.

Weights are cast to the activations' dtype where they are used, so the compute dtype is decided
once, where pixels and tokens enter; norms, softmax and GELU work in float32 whatever that dtype is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from florence_jax.ops.attention import softmax_attention
from florence_jax.ops.davit_attention_tpu import (
    LANES,
    columns_fit,
    conv_by_columns,
    gelu_by_exponential,
)
from florence_jax.ops.depthwise_conv import depthwise_conv
from florence_jax.ops.layer_norm_gelu import gelu_by_erf, layer_norm

# The reference draws every linear, convolution and token embedding from N(0, 0.02).
INIT_STD = 0.02


class Linear(nnx.Module):
    """`x @ kernel + bias`, kernel [in, out]."""

    # Of each output channel, where the kernel is int8: see `florence_jax.quantization`.
    scale: nnx.Param | None = None

    def __init__(self, in_dim: int, out_dim: int, *, use_bias: bool = True, rngs: nnx.Rngs | None):
        self.kernel = nnx.Param(normal(rngs, (in_dim, out_dim)))
        self.bias = nnx.Param(jnp.zeros((out_dim,))) if use_bias else None
        # What is added to the output: fine-tuning sets it on a module that is being traced.
        self.adapter: Callable[[jax.Array], jax.Array] | None = None

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(x.dtype)
        if self.scale is None:
            y = x @ kernel
        else:
            y = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
            y = (y * self.scale[...]).astype(x.dtype)
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        return y if self.adapter is None else y + self.adapter(x)

    def kernel_and_bias(self, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
        """Both in `dtype`, a missing bias as zeros: for what computes the layer otherwise."""
        kernel = self.kernel[...].astype(dtype)
        bias = jnp.zeros(kernel.shape[1:]) if self.bias is None else self.bias[...]
        return kernel, bias.astype(dtype)


class LayerNorm(nnx.Module):
    """Normalises the last axis, with the two-pass variance and in float32."""

    def __init__(self, dim: int):
        self.scale = nnx.Param(jnp.ones((dim,)))
        self.bias = nnx.Param(jnp.zeros((dim,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return layer_norm(x, self.scale[...], self.bias[...])


class Conv(nnx.Module):
    """A strided convolution on NHWC with explicit symmetric padding, kernel [kh, kw, in, out]."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        size: int,
        stride: int,
        padding: int,
        rngs: nnx.Rngs | None,
    ):
        self.stride = stride
        self.padding = padding
        self.kernel = nnx.Param(normal(rngs, (size, size, in_dim, out_dim)))
        self.bias = nnx.Param(jnp.zeros((out_dim,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(x.dtype)
        steps = {"stride": self.stride, "padding": self.padding}
        plain = functools.partial(strided_conv, **steps)
        narrow = x.shape[-1] * self.stride < LANES
        if narrow and columns_fit(x.shape[2], size=kernel.shape[0], **steps):
            folded = functools.partial(conv_by_columns, **steps)
            y = lax.platform_dependent(x, kernel, tpu=folded, default=plain)
        else:
            y = plain(x, kernel)
        return y + self.bias[...].astype(x.dtype)


def strided_conv(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    """float[B, H, W, C], [kh, kw, C, D] -> float[B, H', W', D], by the backend's own conv."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class DepthwiseConv(nnx.Module):
    """Its input plus a 3x3 convolution of each channel by itself, kernel [3, 3, 1, C]."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs | None):
        self.kernel = nnx.Param(normal(rngs, (3, 3, 1, dim)))
        self.bias = nnx.Param(jnp.zeros((dim,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return depthwise_conv(x, self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype))


class MLP(nnx.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, dim: int, hidden_dim: int, *, rngs: nnx.Rngs | None):
        self.fc1 = Linear(dim, hidden_dim, rngs=rngs)
        self.fc2 = Linear(hidden_dim, dim, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(gelu(self.fc1(x)))


class Stack(nnx.Module):
    """Modules in a row, under the names "0", "1", ...

    Plain string names keep the parameter tree a plain nested dict, and iterating by number rather
    than by name keeps "10" behind "9".
    """

    def __init__(self, modules: Sequence[nnx.Module]):
        self.depth = len(modules)
        # What the modules' calls are wrapped in: training sets it on a module that is being traced.
        self.wrap: Callable[..., Callable[..., Any]] = traced_once
        for number, module in enumerate(modules):
            setattr(self, str(number), module)

    def __iter__(self) -> Iterator:
        return (getattr(self, str(number)) for number in range(self.depth))

    def calls(self, method: str = "__call__") -> Iterator[tuple[Any, Callable[..., Any]]]:
        """Each module, and how to call it."""
        return ((module, self.wrap(getattr(module, method))) for module in self)


def traced_once(method: Callable[..., Any]) -> Callable[..., Any]:
    """A module's method, traced and lowered once for all modules that differ in weights alone.

    XLA inlines it everywhere: the compiled program is the same, the way to it shorter.
    """
    bound: Any = method
    return functools.partial(_call, bound.__func__, bound.__self__)


@functools.partial(jax.jit, static_argnums=0)
def _call(method: Callable[..., Any], module: nnx.Module, *arguments: Any, **options: Any) -> Any:
    return method(module, *arguments, **options)


def gelu(x: jax.Array) -> jax.Array:
    """The exact (erf) GELU, in float32."""
    if x.dtype != jnp.bfloat16:
        return gelu_by_erf(x)
    return lax.platform_dependent(x, tpu=gelu_by_exponential, default=gelu_by_erf)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero entries with probability `rate` and scale the rest up; without a key, do nothing."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def drop_path(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Stochastic depth (https://arxiv.org/abs/1603.09382): drop a branch for whole examples."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def fold_in(key: jax.Array | None, number: int) -> jax.Array | None:
    """A key of its own for the `number`-th user of `key`; None stays None (no randomness)."""
    return None if key is None else jax.random.fold_in(key, number)


def split(key: jax.Array | None, *shape: int) -> jax.Array | None:
    """Keys of such a shape, for `pick`; None stays None.

    One operation for all of them: XLA:CPU compiles a loop for each `fold_in`, a third of the time
    that a model with dropout took.
    """
    return None if key is None else jax.random.split(key, shape)


def pick(keys: jax.Array | None, number: int) -> jax.Array | None:
    """The `number`-th of `keys`, or of their rows; None stays None."""
    return None if keys is None else keys[number]


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Scaled dot-product attention with a float32 softmax.

    Args:
        q: float[..., Q, E]. k, v: float[..., S, E], the same leading axes.
        mask: bool, broadcastable to [..., Q, S]; False keys are not attended to.

    Returns:
        float[..., Q, E], in q's dtype.
    """
    kept = None
    if dropout_key is not None and dropout_rate > 0.0:
        shape = (*q.shape[:-1], k.shape[-2])
        kept = jax.random.bernoulli(dropout_key, 1.0 - dropout_rate, shape)
    return softmax_attention(q * q.shape[-1] ** -0.5, k, v, mask, kept, dropout_rate)


def normal(rngs: nnx.Rngs | None, shape: tuple[int, ...], std: float = INIT_STD) -> jax.Array:
    """float32 from N(0, std); zeros without `rngs`, which is enough where only shapes matter."""
    if rngs is None:
        return jnp.zeros(shape)
    return std * jax.random.normal(rngs.params(), shape)
