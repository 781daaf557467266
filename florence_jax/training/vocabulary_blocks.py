"""Statistics of token logits, block by block of the vocabulary: the logits never exist as a whole.

XLA writes float32[N, V] logits to memory, reads them for the sum of exponentials and reads them
twice more in the backward pass. Here one loop over blocks of words keeps running statistics, and
the backward loop computes a block's logits again: a block stays in a TPU's on-chip memory.

On a mesh each device takes its own rows, and with a `tensor` axis its own words.

Shapes: B batch, L label tokens, N = B * L rows of one device, D model, V vocabulary, W words of a
        block, C blocks.
Source: the running maximum and sum of exponentials, https://arxiv.org/abs/1805.02867, algorithm 3;
        logits computed again per block, https://arxiv.org/abs/2411.09009, section 4.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec, get_abstract_mesh

from florence_jax.sharding.activations import axis_size, batch_shards
from florence_jax.sharding.mesh import batch_axes

# Neighbouring values that a TPU's vector register holds.
_LANES = 128
# float32 logits of one block. On a v5e, blocks of half this size move the same bytes.
_BLOCK_BYTES = 32 * 2**20
# Fewer logits than this are not worth a loop.
_SMALL_BYTES = 2 * _BLOCK_BYTES


class LogitSummary(NamedTuple):
    """What the loss needs of each row's logits, float32[B, L] each.

    Attributes:
        log_z: log of the sum of exponentials.
        picked: the label's logit.
        mean: mean over the vocabulary.
        highest: the highest logit, without a gradient.
    """

    log_z: jax.Array
    picked: jax.Array
    mean: jax.Array
    highest: jax.Array


def default_block(labels: jax.Array, vocab: int) -> int:
    """Words of a block for int[B, L] labels; 0 where all logits together are small or rows are
    divided unevenly.
    """
    shards, words_of_device = batch_shards(), -(-vocab // axis_size("tensor"))
    row_bytes = 4 * labels.size // shards
    if labels.shape[0] % shards or row_bytes * words_of_device <= _SMALL_BYTES:
        return 0
    return max(_BLOCK_BYTES // row_bytes, _LANES)


def summarise_in_blocks(
    hidden: jax.Array, weight: jax.Array, bias: jax.Array | None, labels: jax.Array, *, block: int
) -> LogitSummary:
    """The summary of `hidden @ weight.T + bias`, `block` words at a time.

    Gradients of the logits are rounded to the dtype of `hidden` before they are multiplied.

    Args:
        hidden: float[B, L, D]; on a mesh, B is a multiple of `batch_shards()`.
        weight: float[V, D] of the same dtype.
        bias: float32[V], or None for none.
        labels: int[B, L], each of the vocabulary.
        block: about how many words have logits at one time.
    """
    vocab, parts = weight.shape[0], axis_size("tensor")
    bias = jnp.zeros(vocab) if bias is None else bias
    # A device's share of the words; rows that are added for it are masked.
    missing = -vocab % parts
    weight = jnp.pad(weight, ((0, missing), (0, 0)))
    bias = jnp.pad(bias.astype(jnp.float32), (0, missing))
    results: Any = _summary((vocab, block), hidden, weight, bias, labels)
    return LogitSummary(*results)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summary(sizes: tuple[int, int], *arguments: jax.Array) -> tuple[jax.Array, ...]:
    return _forward(sizes, *arguments)[0]


def _forward(
    sizes: tuple[int, int], *arguments: jax.Array
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    rows, words = PartitionSpec(_batch_axes()), PartitionSpec(_word_axis())
    own = _on_each_device(
        functools.partial(_forward_of_device, *sizes), (rows, words, words, rows), (rows,) * 4
    )
    results = own(*arguments)
    return results, (*arguments, results[0])


def _backward(
    sizes: tuple[int, int], residuals: tuple[jax.Array, ...], g: tuple[jax.Array, ...]
) -> tuple[jax.Array | None, ...]:
    rows, words = PartitionSpec(_batch_axes()), PartitionSpec(_word_axis())
    own = _on_each_device(
        functools.partial(_backward_of_device, *sizes),
        (rows, words, words, rows, rows, rows, rows, rows),
        (rows, words, words),
    )
    # The highest logit has no gradient.
    return *own(*residuals, *g[:3]), None


_summary.defvjp(_forward, _backward)


def _forward_of_device(
    vocab: int,
    block: int,
    hidden_BLD: jax.Array,
    weight_VD: jax.Array,
    bias_V: jax.Array,
    labels_BL: jax.Array,
) -> tuple[jax.Array, ...]:
    hidden_ND, labels_N1 = hidden_BLD.reshape(-1, hidden_BLD.shape[-1]), labels_BL.reshape(-1, 1)

    def add(seen: tuple[jax.Array, ...], words: _Block) -> tuple[tuple[jax.Array, ...], None]:
        highest_N, sum_N, picked_N, total_N = seen
        logits_NW = words.logits(hidden_ND)
        top_N = jnp.maximum(highest_N, logits_NW.max(-1))
        sum_N = sum_N * jnp.exp(highest_N - top_N) + jnp.exp(logits_NW - top_N[:, None]).sum(-1)
        picked_N += jnp.where(words.number == labels_N1, logits_NW, 0.0).sum(-1)
        total_N += jnp.where(words.is_word, logits_NW, 0.0).sum(-1)
        return (top_N, sum_N, picked_N, total_N), None

    # The lowest number: less infinity, it would be none.
    lowest_N = jnp.full(hidden_ND.shape[0], jnp.finfo(jnp.float32).min)
    zero_N = jnp.zeros_like(lowest_N)
    blocks = _blocks(weight_VD, bias_V, vocab, block)
    (top_N, sum_N, picked_N, total_N), _ = lax.scan(add, (lowest_N, zero_N, zero_N, zero_N), blocks)
    if _word_axis() is not None:
        own_N, top_N = top_N, lax.pmax(top_N, "tensor")
        parts = (sum_N * jnp.exp(own_N - top_N), picked_N, total_N)
        sum_N, picked_N, total_N = lax.psum(parts, "tensor")
    results = (top_N + jnp.log(sum_N), picked_N, total_N / vocab, top_N)
    return tuple(one.reshape(labels_BL.shape) for one in results)


def _backward_of_device(
    vocab: int,
    block: int,
    hidden_BLD: jax.Array,
    weight_VD: jax.Array,
    bias_V: jax.Array,
    labels_BL: jax.Array,
    *per_row_BL: jax.Array,
) -> tuple[jax.Array, ...]:
    dtype = hidden_BLD.dtype
    hidden_ND, labels_N1 = hidden_BLD.reshape(-1, hidden_BLD.shape[-1]), labels_BL.reshape(-1, 1)
    log_z_N1, g_log_z_N1, g_picked_N1, g_mean_N1 = (one.reshape(-1, 1) for one in per_row_BL)

    def add(dh_ND: jax.Array, words: _Block) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        logits_NW = words.logits(hidden_ND)
        d_logits = g_log_z_N1 * jnp.exp(logits_NW - log_z_N1) + g_mean_N1 / vocab
        d_logits += jnp.where(words.number == labels_N1, g_picked_N1, 0.0)
        d_logits = jnp.where(words.is_word, d_logits, 0.0)
        d_small = d_logits.astype(dtype)
        dh_ND += _product("nw,wd->nd", d_small, words.weight)
        d_weight = _product("nw,nd->wd", d_small, hidden_ND).astype(weight_VD.dtype)
        return dh_ND, (d_weight, d_logits.sum(0))

    blocks = _blocks(weight_VD, bias_V, vocab, block)
    dh_ND, (dw_CWD, db_CW) = lax.scan(add, jnp.zeros(hidden_ND.shape, jnp.float32), blocks)
    own = weight_VD.shape[0]
    dw_VD, db_V = dw_CWD.reshape(-1, dw_CWD.shape[-1])[:own], db_CW.reshape(-1)[:own]
    if _batch_axes():
        dw_VD, db_V = lax.psum((dw_VD, db_V), _batch_axes())
    if _word_axis() is not None:
        dh_ND = lax.psum(dh_ND, "tensor")
    return dh_ND.astype(dtype).reshape(hidden_BLD.shape), dw_VD, db_V


class _Block(NamedTuple):
    """The words of one block, or with a leading axis of all."""

    weight: jax.Array  # float[W, D]
    bias: jax.Array  # float32[W]
    number: jax.Array  # int32[W]: the word's place in the vocabulary
    is_word: jax.Array  # bool[W]: False for words that fill up the last block

    def logits(self, hidden_ND: jax.Array) -> jax.Array:
        """float32[N, W]; the lowest number where there is no word."""
        logits_NW = _product("nd,wd->nw", hidden_ND, self.weight) + self.bias
        return jnp.where(self.is_word, logits_NW, jnp.finfo(jnp.float32).min)


def _blocks(weight_VD: jax.Array, bias_V: jax.Array, vocab: int, block: int) -> _Block:
    own = weight_VD.shape[0]
    count = -(-own // block)
    # Blocks of equal size, of whole lanes where that adds little.
    width = -(-own // count)
    width = -(-width // _LANES) * _LANES if width >= 8 * _LANES else width
    missing = count * width - own
    number_V = jnp.arange(count * width)
    first = 0 if _word_axis() is None else own * lax.axis_index("tensor")
    is_word_V = (number_V < own) & (first + number_V < vocab)
    blocks = _Block(
        weight=jnp.pad(weight_VD, ((0, missing), (0, 0))),
        bias=jnp.pad(bias_V, (0, missing)),
        # No label is below zero.
        number=jnp.where(is_word_V, first + number_V, -1),
        is_word=is_word_V,
    )
    return jax.tree.map(lambda leaf: leaf.reshape(count, width, *leaf.shape[1:]), blocks)


def _product(axes: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(axes, x, y, preferred_element_type=jnp.float32)


def _on_each_device(function: Callable, given: tuple, returned: tuple) -> Callable:
    mesh = get_abstract_mesh()
    if mesh.empty or mesh.manual_axes:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=given, out_specs=returned, check_vma=False)


def _batch_axes() -> tuple[str, ...]:
    mesh = get_abstract_mesh()
    return () if mesh.empty else batch_axes(mesh)


def _word_axis() -> str | None:
    """`tensor` on a mesh that has it, and None elsewhere."""
    return "tensor" if "tensor" in get_abstract_mesh().axis_names else None
