"""Classify frozen embeddings: nearest neighbours, and a linear layer at its optimum.

Needs the extra "train" (optax).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from florence_jax.backbone.backbone import Backbone
from florence_jax.model.handle import Params

# Vectors compared with all neighbours at a time.
_ROWS = 1024


def knn_predict(
    neighbours: np.ndarray,
    labels: np.ndarray,
    vectors: np.ndarray,
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> np.ndarray:
    """Votes of the k nearest neighbours by cosine, float32[N, K]; the largest is the answer.

    A neighbour of similarity s has exp(s / temperature) votes, as in "Unsupervised Feature Learning
    via Non-Parametric Instance Discrimination", https://arxiv.org/abs/1805.01978.

    Args:
        neighbours: float[M, C], embeddings of labelled images.
        labels: int[M], their classes.
        vectors: float[N, C], embeddings to classify.
        num_classes: K.
        k: neighbours that vote, at most M.
        temperature: the lower, the more the nearest one counts.
    """
    if not 1 <= k <= len(neighbours):
        raise ValueError(f"k is {k}, expected 1 to {len(neighbours)}, the labelled images")
    bank = _unit(jnp.asarray(neighbours, jnp.float32))
    classes = jax.nn.one_hot(jnp.asarray(labels), num_classes, dtype=jnp.float32)

    @jax.jit
    def votes(rows: jax.Array, bank: jax.Array, classes: jax.Array) -> jax.Array:
        similarity, chosen = jax.lax.top_k(_unit(rows.astype(jnp.float32)) @ bank.T, k)
        return jnp.einsum("nk,nkc->nc", jnp.exp(similarity / temperature), classes[chosen])

    parts = [
        np.asarray(votes(jnp.asarray(vectors[first : first + _ROWS]), bank, classes))
        for first in range(0, len(vectors), _ROWS)
    ]
    return np.concatenate(parts)


class LinearProbe(NamedTuple):
    """A linear layer on embeddings: kernel float32[C, K] and bias float32[K]."""

    kernel: np.ndarray
    bias: np.ndarray

    def logits(self, vectors: np.ndarray) -> np.ndarray:
        """float[N, C] -> float32[N, K]."""
        return vectors @ self.kernel + self.bias


def fit_linear_probe(
    vectors: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    l2: float = 1e-3,
    max_iterations: int = 500,
    tolerance: float = 1e-5,
) -> LinearProbe:
    """Multinomial logistic regression, by L-BFGS on all examples.

    Channels are standardised first, and the result takes plain embeddings again. The optimum is
    unique: it depends on no learning rate, seed or order.

    Args:
        vectors: float[N, C], embeddings.
        labels: int[N], classes.
        num_classes: K.
        l2: weight of half the squared kernel, on standardised channels.
        max_iterations: steps at most.
        tolerance: of the gradient's largest entry, at which to stop.
    """
    if len(vectors) != len(labels):
        raise ValueError(f"{len(vectors)} vectors and {len(labels)} labels were given")
    given = np.asarray(vectors, np.float64)
    mean, std = given.mean(0), given.std(0)
    std = np.where(std > 1e-6 * max(float(std.max()), 1e-30), std, 1.0)
    inputs = jnp.asarray((given - mean) / std, jnp.float32)
    targets = jnp.asarray(labels)
    start = {
        "kernel": jnp.zeros((inputs.shape[1], num_classes)),
        "bias": jnp.zeros((num_classes,)),
    }
    found = _minimise(start, inputs, targets, l2, max_iterations, tolerance)
    kernel = np.asarray(found["kernel"], np.float64) / std[:, None]
    bias = np.asarray(found["bias"], np.float64) - mean @ kernel
    return LinearProbe(kernel.astype(np.float32), bias.astype(np.float32))


def with_probe(backbone: Backbone, params: Params, probe: LinearProbe) -> tuple[Backbone, Params]:
    """The backbone with the probe as its classifier, in place of the one that it has."""
    num_classes = len(probe.bias)
    config = dataclasses.replace(backbone.config, num_classes=num_classes)
    head = {"norm": params["head"]["norm"], "fc": {"kernel": probe.kernel, "bias": probe.bias}}
    head["fc"] = {name: jnp.asarray(leaf) for name, leaf in head["fc"].items()}
    return dataclasses.replace(backbone, config=config), params | {"head": head}


def _unit(vectors: jax.Array) -> jax.Array:
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


@jax.jit
def _minimise(
    start: Params,
    inputs: jax.Array,
    targets: jax.Array,
    l2: jax.Array,
    max_iterations: jax.Array,
    tolerance: jax.Array,
) -> Params:
    def loss(params: Params) -> jax.Array:
        log_probs = jax.nn.log_softmax(inputs @ params["kernel"] + params["bias"])
        data = -jnp.take_along_axis(log_probs, targets[:, None], axis=1).mean()
        return data + 0.5 * l2 * jnp.sum(params["kernel"] ** 2)

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry: tuple) -> tuple:
        params, state, count, _ = carry
        value, gradient = value_and_grad(params, state=state)
        updates, state = optimizer.update(
            gradient, state, params, value=value, grad=gradient, value_fn=loss
        )
        largest = jnp.max(jnp.stack([jnp.abs(one).max() for one in jax.tree.leaves(gradient)]))
        return optax.apply_updates(params, updates), state, count + 1, largest

    def unfinished(carry: tuple) -> jax.Array:
        return (carry[2] < max_iterations) & (carry[3] > tolerance)

    carry = (start, optimizer.init(start), jnp.int32(0), jnp.float32(jnp.inf))
    return jax.lax.while_loop(unfinished, step, carry)[0]
