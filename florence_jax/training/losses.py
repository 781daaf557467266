"""Token losses as sums; the step divides them once, by the tokens of the global batch.

Shapes: B batch, L label tokens, D model, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from florence_jax.training.settings import LossConfig

# The label of padding, as ignore_index of torch's CrossEntropyLoss and of transformers.
IGNORE = -100


class TokenSums(NamedTuple):
    """Sums over the label tokens of a batch, float32[]; divide by `tokens` for means.

    Attributes:
        loss: The minimised loss, smoothing and z-loss included.
        nll: the plain negative log-likelihood of the labels, in nats.
        correct: labels that are the most likely token.
        tokens: labels that count.
    """

    loss: jax.Array
    nll: jax.Array
    correct: jax.Array
    tokens: jax.Array

    def __add__(self, other: "TokenSums") -> "TokenSums":  # type: ignore[override]
        return TokenSums(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def shift_right(labels: jax.Array, *, start_id: int, pad_id: int) -> jax.Array:
    """Decoder inputs for int[B, L] labels: the start token, then all labels but the last.

    Source: transformers' `shift_tokens_right`, applied once.
    """
    shifted = jnp.roll(labels, 1, axis=-1).at[..., 0].set(start_id)
    return jnp.where(shifted == IGNORE, pad_id, shifted)


@jax.named_scope("cross_entropy")
def summed_loss(
    hidden: jax.Array,
    labels: jax.Array,
    unembed: Callable[[jax.Array], jax.Array],
    config: LossConfig,
    locations: range = range(0),
) -> TokenSums:
    """Sums of the losses of all label tokens.

    Args:
        hidden: decoder states float[B, L, D].
        labels: int[B, L], `IGNORE` where there is none.
        unembed: float[B, l, D] -> float32[B, l, V] logits.
        locations: ids of the location tokens, for the settings that treat them unlike words.
    """
    length, chunk = labels.shape[1], config.chunk
    if not chunk or chunk >= length:
        return _token_sums(unembed(hidden), labels, config, locations)

    padding = -length % chunk
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    labels = jnp.pad(labels, ((0, 0), (0, padding)), constant_values=IGNORE)
    count = (length + padding) // chunk

    def in_chunks(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0], count, chunk, *x.shape[2:]), 1, 0)

    # The backward pass recomputes a chunk's logits: keeping them would save no memory.
    @jax.checkpoint
    def chunk_sums(hidden: jax.Array, labels: jax.Array) -> TokenSums:
        return _token_sums(unembed(hidden), labels, config, locations)

    def add_chunk(total: TokenSums, chunk: tuple[jax.Array, jax.Array]) -> tuple[TokenSums, None]:
        return total + chunk_sums(*chunk), None

    zero = TokenSums(*(jnp.zeros(()),) * 4)
    return jax.lax.scan(add_chunk, zero, (in_chunks(hidden), in_chunks(labels)))[0]


def _token_sums(
    logits: jax.Array, labels: jax.Array, config: LossConfig, locations: range
) -> TokenSums:
    logits = logits.astype(jnp.float32)
    counts = labels != IGNORE
    labels = jnp.where(counts, labels, 0)
    log_z, picked = _normaliser_and_pick(logits, labels)
    nll = loss = log_z - picked
    if config.location_sigma:
        loss = log_z - _expected_logit(logits, labels, picked, config.location_sigma, locations)
    if config.label_smoothing:
        even = log_z - logits.mean(-1)
        loss = (1.0 - config.label_smoothing) * loss + config.label_smoothing * even
    if config.z_loss:
        loss = loss + config.z_loss * jnp.square(log_z)
    if config.location_weight != 1.0:
        loss = jnp.where(_within(labels, locations), config.location_weight * loss, loss)
    # An argmax would pass over the logits once more, slowly.
    correct = (picked >= jax.lax.stop_gradient(logits).max(-1)) & counts

    def total(values: jax.Array) -> jax.Array:
        return jnp.where(counts, values, 0.0).sum()

    return TokenSums(total(loss), total(nll), total(correct), total(counts))


def _within(ids: jax.Array, span: range) -> jax.Array:
    return (ids >= span.start) & (ids < span.stop)


def _expected_logit(
    logits: jax.Array, labels: jax.Array, picked: jax.Array, sigma: float, locations: range
) -> jax.Array:
    """float32[B, L]: for a location, the mean logit of the bins under a Gaussian around its own.

    Args:
        logits: float32[B, L, V].
        labels: int[B, L].
        picked: float32[B, L], the labels' own logits, which words keep.
        sigma: standard deviation in bins.
        locations: ids of the location tokens, bin after bin.
    """
    # The slice is a fiftieth of the published vocabulary.
    of_bins = logits[..., locations.start : locations.stop]
    away = jnp.arange(len(locations)) - (labels[..., None] - locations.start)
    # Bins beyond the image's edge do not exist, so what is left is normalised.
    share = jax.nn.softmax(-0.5 * jnp.square(away / sigma), axis=-1)
    return jnp.where(_within(labels, locations), (share * of_bins).sum(-1), picked)


@jax.custom_vjp
def _normaliser_and_pick(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """float32[B, L, V] and int[B, L] -> log of the sum of exponentials, and the labels' logits."""
    return _forward(logits, labels)[0]


def _forward(logits: jax.Array, labels: jax.Array) -> tuple[tuple[jax.Array, jax.Array], tuple]:
    log_z = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return (log_z, picked), (logits, log_z, labels)


def _backward(residuals: tuple, g: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    # One pass over the logits; the gradient of a gather would be a scatter into zeros beside it.
    logits, log_z, labels = residuals
    g_log_z, g_picked = (part[..., None] for part in g)
    is_label = jnp.arange(logits.shape[-1]) == labels[..., None]
    return g_log_z * jnp.exp(logits - log_z[..., None]) + jnp.where(is_label, g_picked, 0.0), None


_normaliser_and_pick.defvjp(_forward, _backward)
