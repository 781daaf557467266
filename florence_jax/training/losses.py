"""Token losses as sums; the step divides them once, by the tokens of the global batch.

Shapes: B batch, L label tokens, D model, V vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from florence_jax.training.settings import LossConfig
from florence_jax.training.vocabulary_blocks import (
    LogitSummary,
    default_block,
    summarise_in_blocks,
)

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


class OutputLayer(NamedTuple):
    """The linear layer that makes logits of decoder states.

    Attributes:
        weight: float[V, D] in the dtype of the decoder states.
        bias: float32[V], or None for none.
    """

    weight: jax.Array
    bias: jax.Array | None = None

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """float[..., D] -> float32[..., V]."""
        logits = jnp.einsum(
            "...d,vd->...v", hidden, self.weight, preferred_element_type=jnp.float32
        )
        return logits if self.bias is None else logits + self.bias

    def words(self, span: range) -> "OutputLayer":
        """The layer of neighbouring words alone."""
        part = slice(span.start, span.stop)
        return OutputLayer(self.weight[part], None if self.bias is None else self.bias[part])


@jax.named_scope("cross_entropy")
def summed_loss(
    hidden: jax.Array,
    labels: jax.Array,
    layer: OutputLayer,
    config: LossConfig,
    locations: range = range(0),
) -> TokenSums:
    """Sums of the losses of all label tokens.

    Args:
        hidden: decoder states float[B, L, D].
        labels: int[B, L], `IGNORE` where there is none.
        layer: makes logits float32[B, L, V] of them.
        locations: ids of the location tokens, for the settings that treat them unlike words.
    """
    counts = labels != IGNORE
    known = jnp.where(counts, labels, 0)
    summary = _summarise(hidden, layer, known, config.vocabulary_block)
    nll = loss = summary.log_z - summary.picked
    if config.location_sigma:
        bins = layer.words(locations)(hidden)
        expected = _expected_logit(bins, known, summary.picked, config.location_sigma, locations)
        loss = summary.log_z - expected
    if config.label_smoothing:
        even = summary.log_z - summary.mean
        loss = (1.0 - config.label_smoothing) * loss + config.label_smoothing * even
    if config.z_loss:
        loss = loss + config.z_loss * jnp.square(summary.log_z)
    if config.location_weight != 1.0:
        loss = jnp.where(_within(known, locations), config.location_weight * loss, loss)
    # An argmax would pass over the logits once more, slowly.
    correct = (summary.picked >= summary.highest) & counts

    def total(values: jax.Array) -> jax.Array:
        return jnp.where(counts, values, 0.0).sum()

    return TokenSums(total(loss), total(nll), total(correct), total(counts))


def _within(ids: jax.Array, span: range) -> jax.Array:
    return (ids >= span.start) & (ids < span.stop)


def _expected_logit(
    of_bins: jax.Array, labels: jax.Array, picked: jax.Array, sigma: float, locations: range
) -> jax.Array:
    """float32[B, L]: for a location, the mean logit of the bins under a Gaussian around its own.

    Args:
        of_bins: float32[B, L, bins], the logits of the location tokens.
        labels: int[B, L].
        picked: float32[B, L], the labels' own logits, which words keep.
        sigma: standard deviation in bins.
        locations: ids of the location tokens, bin after bin.
    """
    away = jnp.arange(len(locations)) - (labels[..., None] - locations.start)
    # Bins beyond the image's edge do not exist, so what is left is normalised.
    share = jax.nn.softmax(-0.5 * jnp.square(away / sigma), axis=-1)
    return jnp.where(_within(labels, locations), (share * of_bins).sum(-1), picked)


def _summarise(
    hidden: jax.Array, layer: OutputLayer, labels: jax.Array, block: int
) -> LogitSummary:
    def in_blocks(block: int, hidden: jax.Array, layer: OutputLayer) -> LogitSummary:
        return summarise_in_blocks(hidden, layer.weight, layer.bias, labels, block=block)

    def whole(hidden: jax.Array, layer: OutputLayer) -> LogitSummary:
        logits = layer(hidden).astype(jnp.float32)
        log_z, picked = _normaliser_and_pick(logits, labels)
        return LogitSummary(log_z, picked, logits.mean(-1), jax.lax.stop_gradient(logits).max(-1))

    if block:
        return in_blocks(block, hidden, layer)
    block = default_block(labels, layer.weight.shape[0])
    if not block:
        return whole(hidden, layer)
    # A CPU is bound by arithmetic, of which blocks take a third more here.
    return jax.lax.platform_dependent(
        hidden, layer, cpu=whole, default=functools.partial(in_blocks, block)
    )


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
