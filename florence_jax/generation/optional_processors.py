"""Logits processors that few checkpoints use; a program contains only those whose settings are set.

Semantics: transformers 5 `generation/logits_process.py`. Conventions: `logits_processors`.

Shape suffixes: B batch, K beams, T tokens, V vocabulary, S listed sequences, N their tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from florence_jax.generation.constraints import power_of_two
from florence_jax.generation_config import GenerationConfig
from florence_jax.ops.top_k import top_k

# Padding in the token lists of `SequenceBias`: before short sequences, and in rows of padding.
_NO_TOKEN = -1


class SequenceBias(NamedTuple):
    """A bias on the last token of each listed sequence, applied where the others precede it.

    Both axes are padded to powers of two, so that most lists share a program.
    """

    tokens: ArrayLike  # int32[S, N], flush right
    bias: ArrayLike  # float32[S], -inf for a ban


class OptionalValues(NamedTuple):
    """The traced settings of the optional processors; None for each that is not set."""

    sequence_bias: SequenceBias | None = None
    bad_words: SequenceBias | None = None
    suppressed: ArrayLike | None = None  # bool[V]
    begin_suppressed: ArrayLike | None = None  # bool[V]
    begin_index: ArrayLike | None = None  # int32[]: tokens generated when those are suppressed
    decay: ArrayLike | None = None  # float32[T + 1]: by how much an end token's score grows
    min_p: ArrayLike | None = None  # float32[]
    typical_p: ArrayLike | None = None  # float32[]
    epsilon_cutoff: ArrayLike | None = None  # float32[]
    eta_cutoff: ArrayLike | None = None  # float32[]


def optional_values(
    config: GenerationConfig,
    *,
    eos_token_ids: Sequence[int],
    forces_bos: bool,
    vocab_size: int,
    tokens: int,
) -> OptionalValues | None:
    """The optional settings in `config`; None if it sets none, as in every published checkpoint.

    Args:
        config: the user's settings.
        eos_token_ids: the tokens that end a sequence, which are never bad words by themselves.
        forces_bos: is the first token forced? Then "the beginning" is the second one.
        vocab_size, tokens: V and T.

    Raises:
        ValueError: a token outside the vocabulary.
    """
    bad_words = [
        words
        for words in config.bad_words_ids or ()
        if words not in [(token,) for token in eos_token_ids]
    ]
    values = OptionalValues(
        sequence_bias=_sequence_bias("sequence_bias", config.sequence_bias or (), vocab_size),
        bad_words=_sequence_bias(
            "bad_words_ids", ((words, -np.inf) for words in bad_words), vocab_size
        ),
        suppressed=_mask("suppress_tokens", config.suppress_tokens, vocab_size),
        begin_suppressed=_mask("begin_suppress_tokens", config.begin_suppress_tokens, vocab_size),
        begin_index=np.asarray(int(forces_bos), np.int32) if config.begin_suppress_tokens else None,
        decay=_decay(config.exponential_decay_length_penalty, tokens),
    )
    if config.do_sample:
        values = values._replace(
            min_p=_filter(config.min_p, None),
            typical_p=_filter(config.typical_p, 1.0),
            epsilon_cutoff=_filter(config.epsilon_cutoff, 0.0, 1.0),
            eta_cutoff=_filter(config.eta_cutoff, 0.0, 1.0),
        )
    return None if all(value is None for value in values) else values


def table_shapes(values: OptionalValues | None) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The static part of `values`: the names that are set, and the sizes of lists."""
    if values is None:
        return (), ()
    names = tuple(name for name, value in values._asdict().items() if value is not None)
    tables = [table for table in (values.sequence_bias, values.bad_words) if table is not None]
    return names, tuple(size for table in tables for size in np.shape(table.tokens))


def bias_sequences(
    scores_BKV: jax.Array, sequences_BKT: jax.Array, index: jax.Array, table: SequenceBias
) -> jax.Array:
    """Add each sequence's bias to its last token's score where the others come just before."""
    tokens_SN, bias_S = jnp.asarray(table.tokens), jnp.asarray(table.bias)
    vocab = scores_BKV.shape[-1]
    applies_BKS = jnp.ones((*sequences_BKT.shape[:2], len(tokens_SN)), jnp.bool_)
    before = tokens_SN.shape[1] - 1
    for place in range(before):
        position = index + 1 - before + place
        token_BK = lax.dynamic_index_in_dim(
            sequences_BKT, jnp.maximum(position, 0), axis=2, keepdims=False
        )
        wanted_S = tokens_SN[:, place]
        equal_BKS = (token_BK[..., None] == wanted_S) & (position >= 0)
        applies_BKS &= equal_BKS | (wanted_S == _NO_TOKEN)
    last_S = jnp.where(tokens_SN[:, -1] == _NO_TOKEN, vocab, tokens_SN[:, -1])
    added_BKV = jnp.zeros(scores_BKV.shape, scores_BKV.dtype)
    added_BKV = added_BKV.at[:, :, last_S].add(jnp.where(applies_BKS, bias_S, 0.0), mode="drop")
    return scores_BKV + added_BKV


def suppress(scores_BKV: jax.Array, generated: jax.Array, values: OptionalValues) -> jax.Array:
    """Ban tokens that are suppressed always, or at the beginning."""
    if values.suppressed is not None:
        scores_BKV = jnp.where(values.suppressed, -jnp.inf, scores_BKV)
    if values.begin_suppressed is not None:
        now = generated == jnp.asarray(values.begin_index)
        scores_BKV = jnp.where(now & values.begin_suppressed, -jnp.inf, scores_BKV)
    return scores_BKV


def favour_end(
    scores_BKV: jax.Array, generated: jax.Array, decay_T: ArrayLike, eos_token_ids: Sequence[int]
) -> jax.Array:
    """Add `|score| * decay[generated]` to the end tokens' finite scores."""
    is_end_V = _is_one_of(eos_token_ids, scores_BKV.shape[-1])
    grown_BKV = scores_BKV + jnp.abs(scores_BKV) * jnp.asarray(decay_T)[generated]
    return jnp.where(is_end_V & jnp.isfinite(scores_BKV), grown_BKV, scores_BKV)


def filter_by_probability(scores_BKV: jax.Array, values: OptionalValues, keep: int) -> jax.Array:
    """Apply the sampling filters that are set; each leaves at least `keep` tokens."""
    if values.min_p is not None:
        probs_BKV = jax.nn.softmax(scores_BKV, axis=-1)
        least_BK1 = values.min_p * probs_BKV.max(-1, keepdims=True)
        scores_BKV = _drop(scores_BKV, probs_BKV < least_BK1, keep)
    if values.typical_p is not None:
        scores_BKV = keep_typical(scores_BKV, values.typical_p, keep)
    if values.epsilon_cutoff is not None:
        probs_BKV = jax.nn.softmax(scores_BKV, axis=-1)
        scores_BKV = _drop(scores_BKV, probs_BKV < values.epsilon_cutoff, keep)
    if values.eta_cutoff is not None:
        probs_BKV, entropy_BK1 = _entropy(scores_BKV)[1:]
        eta = jnp.asarray(values.eta_cutoff)
        least_BK1 = jnp.minimum(eta, jnp.sqrt(eta) * jnp.exp(-entropy_BK1))
        scores_BKV = _drop(scores_BKV, probs_BKV < least_BK1, keep)
    return scores_BKV


def keep_typical(scores_BKV: jax.Array, typical_p: ArrayLike, keep: int) -> jax.Array:
    """Ban the tokens whose information is furthest from the distribution's entropy.

    Those closest to it stay until they hold `typical_p` of the mass
    (https://arxiv.org/abs/2202.00666).
    """
    log_probs_BKV, probs_BKV, entropy_BK1 = _entropy(scores_BKV)
    distance_BKV = jnp.abs(-log_probs_BKV - entropy_BK1)
    sorted_BKV, by_distance_BKV = lax.sort((distance_BKV, probs_BKV), num_keys=1)
    held_BKV = jnp.cumsum(by_distance_BKV, axis=-1)
    last_BK1 = jnp.sum(held_BKV < typical_p, axis=-1, keepdims=True)
    last_BK1 = jnp.clip(last_BK1, keep - 1, scores_BKV.shape[-1] - 1)
    furthest_BK1 = jnp.take_along_axis(sorted_BKV, last_BK1, axis=-1)
    return jnp.where(distance_BKV > furthest_BK1, -jnp.inf, scores_BKV)


def _entropy(scores_BKV: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probabilities and probabilities [B, K, V], and the entropy [B, K, 1]."""
    log_probs_BKV = jax.nn.log_softmax(scores_BKV, axis=-1)
    probs_BKV = jnp.exp(log_probs_BKV)
    terms_BKV = jnp.where(probs_BKV > 0, log_probs_BKV * probs_BKV, 0.0)
    return log_probs_BKV, probs_BKV, -terms_BKV.sum(-1, keepdims=True)


def _drop(scores_BKV: jax.Array, dropped_BKV: jax.Array, keep: int) -> jax.Array:
    kept_BK1 = top_k(scores_BKV, min(keep, scores_BKV.shape[-1]))[0][..., -1:]
    return jnp.where(dropped_BKV & (scores_BKV < kept_BK1), -jnp.inf, scores_BKV)


def _is_one_of(tokens: Sequence[int], vocab: int) -> np.ndarray:
    mask_V = np.zeros(vocab, np.bool_)
    mask_V[list(tokens)] = True
    return mask_V


def _filter(value: float | None, *neutral: float | None) -> np.ndarray | None:
    return None if value is None or value in neutral else np.asarray(value, np.float32)


def _mask(name: str, tokens: Sequence[int] | None, vocab: int) -> np.ndarray | None:
    if not tokens:
        return None
    _check_tokens(name, tokens, vocab)
    return _is_one_of(tokens, vocab)


def _decay(setting: tuple[int, float] | None, tokens: int) -> np.ndarray | None:
    if setting is None:
        return None
    start, factor = setting
    beyond = np.maximum(np.arange(tokens + 1, dtype=np.float64) - start, 0.0)
    with np.errstate(over="ignore"):
        return (factor**beyond - 1.0).astype(np.float32)


def _sequence_bias(
    name: str, pairs: Iterable[tuple[Sequence[int], float]], vocab: int
) -> SequenceBias | None:
    # The last of equal sequences counts, as in transformers.
    biases = {tuple(tokens): bias for tokens, bias in pairs}
    if not biases:
        return None
    for tokens in biases:
        _check_tokens(name, tokens, vocab)
    rows = power_of_two(len(biases))
    table = np.full((rows, power_of_two(max(map(len, biases)))), _NO_TOKEN, np.int32)
    for row, tokens in enumerate(biases):
        table[row, -len(tokens) :] = tokens
    padded = np.zeros(rows, np.float32)
    padded[: len(biases)] = list(biases.values())
    return SequenceBias(table, padded)


def _check_tokens(name: str, tokens: Sequence[int], vocab: int) -> None:
    if max(tokens) >= vocab:
        raise ValueError(
            f"{name} names token {max(tokens)}, outside the vocabulary of {vocab} tokens"
        )
