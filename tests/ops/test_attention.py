"""The attention's gradient beside the one that JAX derives, and beside PyTorch's in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from florence_jax.ops.attention import softmax_attention
from tests.ops.test_layer_norm_gelu import assert_equal_gradients, draw

RATE = 0.25


def derived(q, k, v, mask, kept):
    scores = jnp.where(mask, q @ k.swapaxes(-1, -2), jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    if kept is not None:
        weights = jnp.where(kept, weights / (1.0 - RATE), 0.0)
    return weights @ v


@pytest.mark.parametrize("dropping", [False, True])
def test_every_operand(dropping):
    q, k, v = draw((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8))
    # Rows that see all keys, some, one, and none.
    mask = jnp.arange(7) < jnp.asarray([7, 3, 1, 0, 5])[:, None]
    kept = jax.random.bernoulli(jax.random.key(1), 1.0 - RATE, (2, 3, 5, 7)) if dropping else None

    def ours(q, k, v):
        return softmax_attention(q, k, v, mask, kept, RATE)

    with jax.default_matmul_precision("highest"):
        assert_equal_gradients(ours, lambda *qkv: derived(*qkv, mask, kept), q, k, v)


def test_bfloat16():
    operands = [array.astype(jnp.bfloat16) for array in draw((2, 9, 16), (2, 9, 16), (2, 9, 16))]

    def true(q, k, v):
        return derived(*(x.astype(jnp.float32) for x in (q, k, v)), True, None)

    def ours(q, k, v):
        return softmax_attention(q, k, v, None, None, 0.0)

    assert_equal_gradients(ours, true, *operands, tolerance=2e-2)


def test_what_all_keys_and_values_share_costs_no_digits():
    """As in a window that is mostly padding, or under a bias that outweighs what is different."""
    q, k, v = draw((4, 16, 8), (4, 16, 8), (4, 16, 8))
    q, k, v = q / 8.0, k + 10.0, v + 10.0

    def ours(q, k, v):
        return softmax_attention(q, k, v, None, None, 0.0)

    with jax.default_matmul_precision("highest"):
        y, own = jax.vjp(ours, q, k, v)
        _, plain = jax.vjp(lambda *qkv: derived(*qkv, True, None), q, k, v)
        (dq, dk, _), (plain_dq, *_) = own(y), plain(y)
    leaves = [torch.tensor(np.float64(x), requires_grad=True) for x in (q, k, v)]
    weights = torch.softmax(leaves[0] @ leaves[1].mT, -1)
    (weights @ leaves[2]).backward(torch.tensor(np.float64(y)))

    def error(gradient, leaf):
        true = leaf.grad.numpy()
        return np.abs(gradient - true).max() / np.abs(true).max()

    assert error(dq, leaves[0]) < 1e-5
    assert error(dk, leaves[1]) < 1e-5
    assert error(plain_dq, leaves[0]) > 1e-4
