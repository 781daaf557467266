"""The end of a decoding step's sublayers on XLA:TPU as one Pallas kernel: projection, sum and norm.

A step has so few rows that XLA:TPU spends more on the norm's five kernels than on the product.

Shapes: R rows, D model, F channels of what is projected.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from florence_jax.ops.davit_attention_tpu import LANES
from florence_jax.ops.decode_step import project_and_norm
from florence_jax.ops.layer_norm_gelu import LAYER_NORM_EPSILON
from florence_jax.ops.pallas_primitive import tpu_operation

# Rows of a step, and the most channels that are projected at a time: while one part is multiplied,
# the kernel's next part comes.
ROWS, PART = 256, 1024


def project_kernel(
    x_BKD: jax.Array,
    y_BKF: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    scale: jax.Array,
    shift: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """The kernel for `step_forms.project_and_norm`; with `interpret` on any backend, slowly."""
    batch, beams, dim = x_BKD.shape
    # XLA:TPU keeps beams outermost, as they would fill few sublanes of a register.
    x_RD, y_RF = (a.swapaxes(0, 1).reshape(-1, a.shape[-1]) for a in (x_BKD, y_BKF))
    tokens, channels = y_RF.shape
    rows = min(ROWS, tokens)
    part = max(n for n in range(LANES, PART + 1, LANES) if channels % n == 0)
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
        name="project",
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
    """In float32 but for the product."""

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


project_and_norm_by_kernel = tpu_operation("project", project_and_norm, project_kernel, 2)
