"""Layers that DaViT, BART and the projector share, with torch's defaults.

Weights are cast to the activations' dtype where they are used, so the compute dtype is decided
once, where pixels and tokens enter. Norms, softmax and GELU are always computed in float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from florence_jax.ops.depthwise_conv import depthwise_conv
from florence_jax.ops.layer_norm_gelu import gelu, layer_norm
from florence_jax.ops.strided_conv import strided_conv

# The reference draws every linear, convolution and token embedding from N(0, 0.02).
INIT_STD = 0.02


class Linear(nnx.Module):
    """`x @ kernel + bias`, kernel [in, out]."""

    # One per output channel where the kernel is int8, see `florence_jax.quantization`.
    scale: nnx.Param | None = None
    # Added to the output: a `LowRankAdapter`, or what fine-tuning sets on a module being traced.
    adapter: Callable[[jax.Array], jax.Array] | None = None

    def __init__(self, in_dim: int, out_dim: int, *, use_bias: bool = True, rngs: nnx.Rngs | None):
        self.kernel = nnx.Param(normal(rngs, (in_dim, out_dim)))
        self.bias = nnx.Param(jnp.zeros((out_dim,))) if use_bias else None

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

    @property
    def is_plain(self) -> bool:
        """Whether the layer is `x @ kernel + bias` alone, without adapter and int8 scale."""
        return self.adapter is None and self.scale is None

    def kernel_and_bias(self, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
        """Kernel and bias (zeros if there is none) in `dtype`, for kernels that fuse this layer."""
        kernel = self.kernel[...].astype(dtype)
        bias = jnp.zeros(kernel.shape[1:]) if self.bias is None else self.bias[...]
        return kernel, bias.astype(dtype)


class LowRankAdapter(nnx.Module):
    """A LoRA adapter's output, x @ a @ b, with a [in, r] and b [r, out], which carries the scale.

    Its factors come from a checkpoint, see `florence_jax.adapters`.
    """

    def __init__(self) -> None:
        self.a = nnx.Param(jnp.zeros((1, 1)))
        self.b = nnx.Param(jnp.zeros((1, 1)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return (x @ self.a[...].astype(x.dtype)) @ self.b[...].astype(x.dtype)


class Embedding(nnx.Module):
    """A table of token embeddings, float[V, D], that also computes logits."""

    # One per row where rows are int8, see `florence_jax.quantization`.
    scale: nnx.Param | None = None

    def __init__(self, vocab_size: int, dim: int, *, rngs: nnx.Rngs | None):
        self.vocab_size = vocab_size
        self.embedding = nnx.Param(normal(rngs, (vocab_size, dim)))

    def weight(self, dtype: jnp.dtype) -> jax.Array:
        """float[V, D] in `dtype`, not yet multiplied by `scale`."""
        # A mesh that does not divide V pads the table with rows of zeros, which must not become
        # logits.
        return self.embedding[...][: self.vocab_size].astype(dtype)

    @jax.named_scope("embedding")
    def __call__(self, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """int[...] -> float[..., D]."""
        # Length first: XLA merges the gradients of two look-ups of the same shape into one scatter,
        # concatenated along their first axis. Along the batch, rows would change devices for it.
        tokens = jnp.moveaxis(tokens, -1, 0)
        rows = _take_rows(self.embedding[...], tokens)
        if self.scale is not None:
            rows = rows * self.scale[...][tokens][..., None]
        return jnp.moveaxis(rows, 0, -2).astype(dtype)


def _take_rows(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """table[tokens], with a gradient that is summed in float32."""
    small = table.dtype in (jnp.bfloat16, jnp.float16)
    return _take_small_rows(table, tokens) if small else table[tokens]


@jax.custom_vjp
def _take_small_rows(table: jax.Array, tokens: jax.Array) -> jax.Array:
    return table[tokens]


def _add_rows(residuals: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, None]:
    table, tokens = residuals
    # A token that is in every prompt has hundreds of summands.
    total = jnp.zeros(table.shape, jnp.float32).at[tokens].add(g.astype(jnp.float32))
    return total.astype(table.dtype), None


_take_small_rows.defvjp(lambda table, tokens: (table[tokens], (table, tokens)), _add_rows)


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, in float32 with the two-pass variance."""

    def __init__(self, dim: int):
        self.scale = nnx.Param(jnp.ones((dim,)))
        self.bias = nnx.Param(jnp.zeros((dim,)))

    @jax.named_scope("layer_norm")
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
        use_bias: bool = True,
        rngs: nnx.Rngs | None,
    ):
        self.stride = stride
        self.padding = padding
        self.kernel = nnx.Param(normal(rngs, (size, size, in_dim, out_dim)))
        self.bias = nnx.Param(jnp.zeros((out_dim,))) if use_bias else None

    @jax.named_scope("convolution")
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(x.dtype)
        y = strided_conv(x, kernel, stride=self.stride, padding=self.padding)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class DepthwiseConv(nnx.Module):
    """A depthwise 3x3 convolution added to its input, kernel [3, 3, 1, C]."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs | None):
        self.kernel = nnx.Param(normal(rngs, (3, 3, 1, dim)))
        self.bias = nnx.Param(jnp.zeros((dim,)))

    @jax.named_scope("convolution")
    def __call__(self, x: jax.Array) -> jax.Array:
        return depthwise_conv(x, self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype))


class MLP(nnx.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, dim: int, hidden_dim: int, *, rngs: nnx.Rngs | None):
        self.fc1 = Linear(dim, hidden_dim, rngs=rngs)
        self.fc2 = Linear(hidden_dim, dim, rngs=rngs)

    @jax.named_scope("mlp")
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(gelu(self.fc1(x)))


class Sequential(nnx.Module):
    """Modules in order, stored under the names "0", "1", ...

    String names keep the parameter tree a plain nested dict; iterating by number instead of by name
    puts "10" after "9".
    """

    def __init__(self, modules: Sequence[nnx.Module]):
        self.depth = len(modules)
        # Wraps every call. Training sets it, for remat, on a module that is being traced.
        self.call_wrapper: Callable[..., Callable[..., Any]] = jit_shared
        for number, module in enumerate(modules):
            setattr(self, str(number), module)

    def __iter__(self) -> Iterator:
        return (getattr(self, str(number)) for number in range(self.depth))

    def iter_calls(self, method: str = "__call__") -> Iterator[tuple[Any, Callable[..., Any]]]:
        """Each module with its wrapped method."""
        return ((module, self.call_wrapper(getattr(module, method))) for module in self)


def jit_shared(method: Callable[..., Any]) -> Callable[..., Any]:
    """Trace and lower a module's method once for all modules that differ only in weights.

    XLA inlines it everywhere: the compiled program is the same, and tracing is faster.
    """
    bound: Any = method
    return functools.partial(_call, bound.__func__, bound.__self__)


@functools.partial(jax.jit, static_argnums=0)
def _call(method: Callable[..., Any], module: nnx.Module, *arguments: Any, **options: Any) -> Any:
    return method(module, *arguments, **options)


def per_token(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Apply `function` to the rows of float[tokens, C].

    XLA:CPU's library for products takes up to 1.7 times as long for a left side of more axes.
    """
    y = function(x.reshape(-1, x.shape[-1]))
    return y.reshape(*x.shape[:-1], y.shape[-1])


@jax.named_scope("dropout")
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
    """`jax.random.fold_in`, except that None (no randomness) stays None."""
    return None if key is None else jax.random.fold_in(key, number)


def split_key(key: jax.Array | None, *shape: int) -> jax.Array | None:
    """Split a key into keys of this shape, for `index_key`; None stays None.

    One operation makes all of them: XLA:CPU compiles a loop for each `fold_in`, which took a third
    of the compile time of a model with dropout.
    """
    return None if key is None else jax.random.split(key, shape)


def index_key(keys: jax.Array | None, number: int) -> jax.Array | None:
    """`keys[number]`; None stays None."""
    return None if keys is None else keys[number]


def normal(rngs: nnx.Rngs | None, shape: tuple[int, ...], std: float = INIT_STD) -> jax.Array:
    """float32 values from N(0, std), or zeros without `rngs`, where only shapes matter."""
    if rngs is None:
        return jnp.zeros(shape)
    return std * normal_of_shape(rngs.params(), shape)


def normal_of_shape(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The values of `jax.random.normal`, drawn in one dimension.

    XLA:CPU compiles this ten times faster than a draw in three dimensions, which took most of the
    time until a model with random weights was there.
    """
    return jax.random.normal(key, (math.prod(shape),)).reshape(shape)
