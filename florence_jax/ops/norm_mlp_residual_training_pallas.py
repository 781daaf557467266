"""Layer norm, MLP and residual of DaViT in training: Pallas TPU kernels, forward and backward.

Plain reverse mode writes the hidden activations, four times the map, and their gradients to memory
and reads each several times. The backward kernel keeps nothing but the map: it computes the hidden
activations of a row block again, and sums the weights' gradients over all row blocks in VMEM.

Shapes: B images, H W grid, S tokens of an image, R rows of a block, C channels, F hidden channels.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from florence_jax.ops import norm_mlp_residual_pallas
from florence_jax.ops.layer_norm_gelu import (
    LAYER_NORM_EPSILON,
    gelu,
    gelu_poly_bf16,
    gelu_poly_with_slope,
    layer_norm,
)
from florence_jax.ops.lazy_pallas import pl, pltpu
from florence_jax.ops.pallas_primitive import VMEM_BUDGET_BYTES, make_pallas_primitive, vmem_bytes
from florence_jax.sharding.activations import batch_shards

# Hidden channels per matrix product, and the fewest rows of a block that are worth a kernel.
CHUNK, _FEWEST_ROWS = 512, 64
# bfloat16 rows are packed by 16.
_PACKED_ROWS = 16


def backward_supported(x_BHWC: jax.Array, hidden_channels: int) -> bool:
    """Whether the kernels support a map that `norm_mlp_residual_pallas.pallas_supported` accepts.

    Rows of an image must divide into blocks, and the weights with their gradients fit in VMEM.
    """
    _, height, width, dim = x_BHWC.shape
    if not _block_rows(height * width, dim):
        return False
    needed = _bytes(_block_rows(height * width, dim), dim, hidden_channels)
    # Only wide models ask for the chip: their programs are few.
    return needed <= VMEM_BUDGET_BYTES or 5 * needed <= 4 * vmem_bytes()


def reference(x_BHWC: jax.Array, keep_B: jax.Array, *weights: jax.Array) -> jax.Array:
    """x + keep * mlp(layer_norm(x)), with `keep_B` the scale of each image's branch, float32[B]."""
    scale, shift, kernel1, bias1, kernel2, bias2 = weights
    branch = gelu(layer_norm(x_BHWC, scale, shift) @ kernel1 + bias1) @ kernel2 + bias2
    return x_BHWC + (branch * keep_B[:, None, None, None]).astype(x_BHWC.dtype)


def reference_backward(
    x_BHWC: jax.Array, g_BHWC: jax.Array, keep_B: jax.Array, *weights: jax.Array, shards: int
) -> tuple[jax.Array, ...]:
    """The gradients of `reference` with respect to the map and each weight.

    Gradients of weights have a leading axis: the sums of each of `shards` equal parts of the batch.
    """

    def of_shard(x: jax.Array, g: jax.Array, keep: jax.Array) -> tuple[jax.Array, ...]:
        _, backward = jax.vjp(lambda x, *own: reference(x, keep, *own), x, *weights)
        return backward(g)

    divided = (part.reshape(shards, -1, *part.shape[1:]) for part in (x_BHWC, g_BHWC, keep_B))
    dx, *d_weights = jax.vmap(of_shard)(*divided)
    return dx.reshape(x_BHWC.shape), *d_weights


def forward_kernel(
    x_BHWC: jax.Array, keep_B: jax.Array, *weights: jax.Array, interpret: bool = False
) -> jax.Array:
    """The Pallas kernel; `interpret` runs it on any backend, slowly."""
    batch, height, width, dim = x_BHWC.shape
    scale, shift, kernel1, bias1, kernel2, bias2 = weights
    hidden, rows = kernel1.shape[1], _block_rows(height * width, dim)
    part = norm_mlp_residual_pallas.hidden_block(rows, dim, hidden)
    some = pl.BlockSpec((None, rows, dim), lambda b, i, j: (b, i, 0))
    vector = pl.BlockSpec((1, dim), lambda b, i, j: (0, 0))
    x_BSC = x_BHWC.reshape(batch, -1, dim)
    y_BSC = pl.pallas_call(
        _forward,
        grid=(batch, height * width // rows, hidden // part),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            some,
            vector,
            vector,
            pl.BlockSpec((dim, part), lambda b, i, j: (0, j)),
            pl.BlockSpec((1, part), lambda b, i, j: (0, j)),
            pl.BlockSpec((part, dim), lambda b, i, j: (j, 0)),
            vector,
        ],
        out_specs=some,
        out_shape=jax.ShapeDtypeStruct(x_BSC.shape, x_BSC.dtype),
        scratch_shapes=[pltpu.VMEM((rows, dim), x_BSC.dtype), pltpu.VMEM((rows, dim), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
        name="norm_mlp_residual_forward",
    )(keep_B, x_BSC, _row(scale), _row(shift), kernel1, _row(bias1), kernel2, _row(bias2))
    return y_BSC.reshape(x_BHWC.shape)


def backward_kernel(
    x_BHWC: jax.Array,
    g_BHWC: jax.Array,
    keep_B: jax.Array,
    *weights: jax.Array,
    shards: int = 1,
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    """The Pallas kernel of `reference_backward`; on each device of a mesh, of its own shard."""
    del shards
    batch, height, width, dim = x_BHWC.shape
    scale, shift, kernel1, bias1, kernel2, _ = weights
    hidden, rows = kernel1.shape[1], _block_rows(height * width, dim)
    some = pl.BlockSpec((None, rows, dim), lambda b, i: (b, i, 0))

    def whole(shape: tuple[int, ...]) -> Any:
        # It stays the same block: a second buffer would hold it twice.
        return pl.BlockSpec(
            shape, lambda b, i: (0,) * len(shape), pipeline_mode=pl.Buffered(buffer_count=1)
        )

    needed = _bytes(rows, dim, hidden)
    x_BSC, g_BSC = (part.reshape(batch, -1, dim) for part in (x_BHWC, g_BHWC))
    d_shapes = ((1, dim), (1, dim), (dim, hidden), (1, hidden), (hidden, dim), (1, dim))
    dx_BSC, *d_weights = pl.pallas_call(
        _backward,
        grid=(batch, height * width // rows),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            some,
            some,
            whole((1, dim)),
            whole((1, dim)),
            whole((dim, hidden)),
            whole((1, hidden)),
            whole((hidden, dim)),
        ],
        out_specs=[some, *map(whole, d_shapes)],
        out_shape=[
            jax.ShapeDtypeStruct(x_BSC.shape, x_BSC.dtype),
            *(
                jax.ShapeDtypeStruct(shape, weight.dtype)
                for shape, weight in zip(d_shapes, weights, strict=True)
            ),
        ],
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in d_shapes],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"),
            vmem_limit_bytes=None if needed <= VMEM_BUDGET_BYTES else needed * 5 // 4,
        ),
        interpret=interpret,
        name="norm_mlp_residual_backward",
    )(keep_B, x_BSC, g_BSC, _row(scale), _row(shift), kernel1, _row(bias1), kernel2)
    shapes = (weight.shape for weight in weights)
    d_weights = (d.reshape(1, *shape) for d, shape in zip(d_weights, shapes, strict=True))
    return dx_BSC.reshape(x_BHWC.shape), *d_weights


def _row(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.float32)[None]


def _block_rows(tokens: int, dim: int) -> int:
    """Rows of a block: the largest that divides the tokens of an image; 0 if all are too small."""
    most = 512 if dim < 256 else 256
    sizes = (n for n in range(most, _FEWEST_ROWS - 1, -_PACKED_ROWS) if tokens % n == 0)
    return next(sizes, 0)


def _bytes(rows: int, dim: int, hidden: int) -> int:
    """Bytes of VMEM that the backward kernel takes."""
    weights = dim * hidden * 2
    # The weights and their gradients in bfloat16, the sums in float32; three double-buffered
    # blocks; float32 temporaries of a chunk and of the rows.
    return weights * (2 + 2 + 4) + 3 * 2 * 2 * rows * dim + 4 * rows * (6 * CHUNK + 6 * dim)


def _forward(
    keep_ref: Any,
    x_ref: Any,
    scale_ref: Any,
    shift_ref: Any,
    kernel1_ref: Any,
    bias1_ref: Any,
    kernel2_ref: Any,
    bias2_ref: Any,
    out_ref: Any,
    normed_ref: Any,
    total_ref: Any,
) -> None:
    keep = keep_ref[pl.program_id(0)]

    @pl.when(pl.program_id(2) == 0)
    def _begin() -> None:
        normal, _ = _normalise(x_ref[...])
        normed_ref[...] = (normal * scale_ref[...] + shift_ref[...]).astype(x_ref.dtype)
        total_ref[...] = jnp.broadcast_to(bias2_ref[...], total_ref.shape)

    total = total_ref[...]
    for own in _chunks(kernel1_ref.shape[1]):
        hidden = _product(normed_ref[...], kernel1_ref[:, own]) + bias1_ref[:, own]
        total += _product(gelu_poly_bf16(hidden).astype(x_ref.dtype), kernel2_ref[own])
    total_ref[...] = total

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _end() -> None:
        y_RC = x_ref[...].astype(jnp.float32) + keep * total_ref[...]
        out_ref[...] = y_RC.astype(x_ref.dtype)


def _backward(
    keep_ref: Any,
    x_ref: Any,
    g_ref: Any,
    scale_ref: Any,
    shift_ref: Any,
    kernel1_ref: Any,
    bias1_ref: Any,
    kernel2_ref: Any,
    dx_ref: Any,
    *outs_and_sums: Any,
) -> None:
    """Compute everything but the products in float32."""
    outs, sums = outs_and_sums[:6], outs_and_sums[6:]
    d_scale, d_shift, d_kernel1, d_bias1, d_kernel2, d_bias2 = sums
    dtype = x_ref.dtype
    first = (pl.program_id(0) == 0) & (pl.program_id(1) == 0)
    last = pl.program_id(0) == pl.num_programs(0) - 1
    last &= pl.program_id(1) == pl.num_programs(1) - 1

    @pl.when(first)
    def _begin() -> None:
        for one in sums:
            one[...] = jnp.zeros(one.shape, one.dtype)

    normal, inverse = _normalise(x_ref[...])
    normed = (normal * scale_ref[...] + shift_ref[...]).astype(dtype)
    g = g_ref[...].astype(jnp.float32)
    branch = keep_ref[pl.program_id(0)] * g
    d_bias2[...] += branch.sum(0, keepdims=True)
    branch = branch.astype(dtype)
    d_normed = jnp.zeros(normal.shape, jnp.float32)
    for own in _chunks(kernel1_ref.shape[1]):
        hidden = _product(normed, kernel1_ref[:, own]) + bias1_ref[:, own]
        activated, slope = gelu_poly_with_slope(hidden)
        d_hidden = _product_transposed(branch, kernel2_ref[own]) * slope
        d_bias1[:, own] += d_hidden.sum(0, keepdims=True)
        d_hidden = d_hidden.astype(dtype)
        d_kernel2[own] += _product_first_transposed(activated.astype(dtype), branch)
        d_kernel1[:, own] += _product_first_transposed(normed, d_hidden)
        d_normed += _product_transposed(d_hidden, kernel1_ref[:, own])
    d_shift[...] += d_normed.sum(0, keepdims=True)
    d_scale[...] += (d_normed * normal).sum(0, keepdims=True)
    scaled = d_normed * scale_ref[...]
    along = (scaled * normal).mean(-1, keepdims=True)
    through = inverse * (scaled - scaled.mean(-1, keepdims=True) - normal * along)
    dx_ref[...] = (g + through).astype(dtype)

    @pl.when(last)
    def _end() -> None:
        for out, total in zip(outs, sums, strict=True):
            out[...] = total[...].astype(out.dtype)


def _normalise(x_RC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows of mean 0 and variance 1 in float32, and one over their deviations."""
    x_RC = x_RC.astype(jnp.float32)
    centred = x_RC - x_RC.mean(-1, keepdims=True)
    inverse = lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + LAYER_NORM_EPSILON)
    return centred * inverse, inverse


def _chunks(hidden: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, hidden)) for start in range(0, hidden, CHUNK)]


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.dot(x, y, preferred_element_type=jnp.float32)


def _product_transposed(x: jax.Array, y: jax.Array) -> jax.Array:
    across = (((1,), (1,)), ((), ()))
    return lax.dot_general(x, y, across, preferred_element_type=jnp.float32)


def _product_first_transposed(x: jax.Array, y: jax.Array) -> jax.Array:
    down = (((0,), (0,)), ((), ()))
    return lax.dot_general(x, y, down, preferred_element_type=jnp.float32)


_forward_primitive = make_pallas_primitive(
    "norm_mlp_residual_forward", reference, forward_kernel, batched_args=2
)
_backward_primitive = make_pallas_primitive(
    "norm_mlp_residual_backward", reference_backward, backward_kernel, batched_args=3
)


@jax.custom_vjp
def norm_mlp_residual_dropped(
    x_BHWC: jax.Array, keep_B: jax.Array, *weights: jax.Array
) -> jax.Array:
    """x + keep * mlp(layer_norm(x)); differentiable with respect to the map and the weights.

    Args:
        x_BHWC: bfloat16[B, H, W, C], a map that `backward_supported` accepts.
        keep_B: float32[B], the scale of each image's branch: stochastic depth's, or ones.
        weights: the norm's scale and shift, kernel and bias of both linear layers.
    """
    return _forward_primitive(x_BHWC, keep_B, *weights)


def _gradient(residuals: tuple[jax.Array, ...], g_BHWC: jax.Array) -> tuple[Any, ...]:
    x_BHWC, keep_B, *weights = residuals
    dx, *d_weights = _backward_primitive(x_BHWC, g_BHWC, keep_B, *weights, shards=batch_shards())
    return dx, None, *(d.sum(0) for d in d_weights)


norm_mlp_residual_dropped.defvjp(
    lambda *arguments: (_forward_primitive(*arguments), arguments), _gradient
)


@jax.custom_vjp
def norm_mlp_residual(x_BHWC: jax.Array, *weights: jax.Array) -> jax.Array:
    """`norm_mlp_residual_pallas.norm_mlp_residual`; where it is differentiated, the kernels here.

    Args:
        x_BHWC: bfloat16[B, H, W, C], a map that `norm_mlp_residual_pallas` supports.
        weights: as of `norm_mlp_residual_dropped`.
    """
    return norm_mlp_residual_pallas.norm_mlp_residual(x_BHWC, *weights)


def _forward_rule(x_BHWC: jax.Array, *weights: jax.Array) -> tuple[jax.Array, Any]:
    def undropped(x_BHWC: jax.Array, *weights: jax.Array) -> jax.Array:
        return norm_mlp_residual_dropped(x_BHWC, jnp.ones(len(x_BHWC)), *weights)

    supported = backward_supported(x_BHWC, weights[2].shape[1])
    form = undropped if supported else norm_mlp_residual_pallas.norm_mlp_residual
    return jax.vjp(form, x_BHWC, *weights)


norm_mlp_residual.defvjp(_forward_rule, lambda backward, g_BHWC: backward(g_BHWC))
