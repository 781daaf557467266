"""Linear layer, residual and layer norm of a decoding step: reference and Pallas TPU kernel.

A step has so few rows that XLA:TPU spends more time on the norm's five kernels than on the product.

Shapes: B batch, K beams, R = B * K rows, D model, F input channels of the linear layer.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from florence_jax.ops.layer_norm_gelu import LAYER_NORM_EPSILON, layer_norm
from florence_jax.ops.lazy_pallas import pl, pltpu
from florence_jax.ops.pallas_primitive import LANES, make_pallas_primitive, rows_fill_registers

# Largest row block and largest block of input channels; the next one loads during each product.
ROWS, CHANNELS = 256, 1024
# The widest model whose row block and weights were made to fit in VMEM.
_MAX_DIM = 1024


def linear_norm_kernel_supported(x_BKD: jax.Array, in_channels: int) -> bool:
    """Whether `linear_residual_norm` runs as a kernel for `in_channels` projected onto x."""
    whole = in_channels % LANES == 0 and x_BKD.shape[-1] <= _MAX_DIM
    return whole and rows_fill_registers(x_BKD)


def linear_residual_norm_reference(
    x: jax.Array,
    y: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    scale: jax.Array,
    shift: jax.Array,
) -> jax.Array:
    """layer_norm(x + (y @ kernel + bias)), the end of a post-norm sublayer.

    Args:
        x: float[..., D]. y: float[..., F].
        kernel: float[F, D]. bias, scale, shift: float[D].

    Returns:
        float[..., D].
    """
    return layer_norm(x + (y @ kernel + bias), scale, shift)


def linear_residual_norm_kernel(
    x_BKD: jax.Array,
    y_BKF: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    scale: jax.Array,
    shift: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """The Pallas kernel; `interpret` runs it on any backend, slowly."""
    batch, beams, dim = x_BKD.shape
    # XLA:TPU keeps beams outermost, as they would fill few sublanes of a register.
    x_RD, y_RF = (a.swapaxes(0, 1).reshape(-1, a.shape[-1]) for a in (x_BKD, y_BKF))
    tokens, channels = y_RF.shape
    rows = min(ROWS, tokens)
    part = max(n for n in range(LANES, CHANNELS + 1, LANES) if channels % n == 0)
    some = pl.BlockSpec((rows, dim), lambda i, j: (i, 0))
    vector = pl.BlockSpec((1, dim), lambda i, j: (0, 0))
    out_RD = pl.pallas_call(
        _kernel,
        grid=(pl.cdiv(tokens, rows), channels // part),
        in_specs=[
            some,
            pl.BlockSpec((rows, part), lambda i, j: (i, j)),
            pl.BlockSpec((part, dim), lambda i, j: (j, 0)),
            vector,
            vector,
            vector,
        ],
        out_specs=some,
        out_shape=jax.ShapeDtypeStruct(x_RD.shape, x_RD.dtype),
        scratch_shapes=[pltpu.VMEM((rows, dim), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="linear_residual_norm",
    )(x_RD, y_RF, kernel, *(leaf.astype(jnp.float32)[None] for leaf in (bias, scale, shift)))
    return out_RD.reshape(beams, batch, dim).swapaxes(0, 1)


def _kernel(
    x_ref: Any,
    y_ref: Any,
    kernel_ref: Any,
    bias_ref: Any,
    scale_ref: Any,
    shift_ref: Any,
    out_ref: Any,
    total_ref: Any,
) -> None:
    """Compute everything but the product in float32."""

    @pl.when(pl.program_id(1) == 0)
    def _begin() -> None:
        total_ref[...] = x_ref[...].astype(jnp.float32) + bias_ref[...]

    y_RF = y_ref[...].astype(kernel_ref.dtype)
    total_RD = total_ref[...] + jnp.dot(y_RF, kernel_ref[...], preferred_element_type=jnp.float32)
    total_ref[...] = total_RD

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _end() -> None:
        centred = total_RD - total_RD.mean(-1, keepdims=True)
        inverse = lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + LAYER_NORM_EPSILON)
        out_ref[...] = (centred * inverse * scale_ref[...] + shift_ref[...]).astype(out_ref.dtype)


linear_residual_norm = make_pallas_primitive(
    "linear_residual_norm",
    linear_residual_norm_reference,
    linear_residual_norm_kernel,
    batched_args=2,
)
