"""A decoding step's maths as XLA:TPU likes it, and what its kernels can take.

Shapes: B batch, K beams, N heads, S stored rows, D = the channels of all heads, Q = K * N.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from florence_jax.ops.davit_attention_tpu import LANES
from florence_jax.ops.layer_norm_gelu import layer_norm
from florence_jax.ops.pallas_primitive import ROOM, SUBLANES
from florence_jax.sharding.activations import rows_are_local

# The widest model for which the projection's kernel was made to fit.
_MOST_CHANNELS = 1024


def attend_to_rows(
    q_BKD: jax.Array, key_BSD: jax.Array, value_BSD: jax.Array, mask: jax.Array, *, heads: int
) -> jax.Array:
    """Each head's queries of its own channels of the rows; mask bool[B, 1 or K, S]."""
    batch, queries, dim = q_BKD.shape
    width = dim // heads
    own_ND = jnp.arange(dim) // width == jnp.arange(heads)[:, None]
    q_BKND = jnp.where(own_ND, (q_BKD * width**-0.5)[:, :, None], 0.0)
    q_BQD = q_BKND.reshape(batch, queries * heads, dim)
    scores = jnp.einsum("bqd,bsd->bqs", q_BQD, key_BSD, preferred_element_type=jnp.float32)
    mask = jnp.broadcast_to(mask, (batch, queries, mask.shape[-1]))
    scores = jnp.where(jnp.repeat(mask, heads, axis=1), scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value_BSD.dtype)
    y_BQD = jnp.einsum("bqs,bsd->bqd", weights, value_BSD)
    return jnp.where(own_ND, y_BQD.reshape(q_BKND.shape), 0.0).sum(2)


def filled_heads(heads: int) -> int:
    """Heads that fill whole registers of float32."""
    return -(-heads // SUBLANES) * SUBLANES


def rows_at_once(stored: int, dim: int, queries: int) -> int:
    """How many of an example's stored rows the attention's kernel takes at a time; 0 for none."""
    # Keys and values in bfloat16, of these rows and of the next, and three arrays of scores and of
    # answers in float32.
    most = (ROOM - 3 * 4 * queries * dim) // (2 * 2 * 2 * dim + 3 * 4 * queries)
    if stored <= most:
        return stored
    return max((n for n in range(LANES, most + 1, LANES) if stored % n == 0), default=0)


def kernel_attends(q_BKD: jax.Array, stored: int, heads: int) -> bool:
    """Whether the attention's kernel can take these queries, of so many rows."""
    _, beams, dim = q_BKD.shape
    return _fill_registers(q_BKD) and rows_at_once(stored, dim, beams * filled_heads(heads)) > 0


def kernel_projects(x_BKD: jax.Array, channels: int) -> bool:
    """Whether the projection's kernel can add so many channels, projected, to these activations."""
    whole = channels % LANES == 0 and x_BKD.shape[-1] <= _MOST_CHANNELS
    return whole and _fill_registers(x_BKD)


def _fill_registers(x_BKD: jax.Array) -> bool:
    """Whether they are bfloat16 of whole lanes, each example's on one device."""
    whole = x_BKD.shape[-1] % LANES == 0
    return whole and x_BKD.dtype == jnp.bfloat16 and rows_are_local(x_BKD.shape[0])


def project_and_norm(
    x: jax.Array,
    y: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    scale: jax.Array,
    shift: jax.Array,
) -> jax.Array:
    """The end of a post-norm sublayer: the norm of x float[..., D] and the projection of y."""
    return layer_norm(x + (y @ kernel + bias), scale, shift)
