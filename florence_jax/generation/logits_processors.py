"""Logits processors: temperature, penalties, n-gram bans, forced tokens, top-k and top-p.

Each function is pure, takes whole batches and runs on the device. Order and semantics are those
of transformers 5 (`generation/utils.py: _get_logits_processor` and `generation/logits_process.py`).
`sequences_BKT` are the *running* sequences, after beams were reordered. Position 0 is the decoder
start token, `index` is the last position that holds a token, and later positions are not read.

Shape suffixes: B batch, K beams, T tokens, V vocabulary.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from florence_jax.generation.constraints import allowed_tokens, mask_illegal
from florence_jax.generation.decode_config import DecodeParams, DecodeStatic
from florence_jax.generation.optional_processors import (
    OptionalValues,
    bias_sequences,
    favour_end,
    filter_by_probability,
    suppress,
)
from florence_jax.ops.pallas_primitive import LANES
from florence_jax.ops.top_k import top_k
from florence_jax.sharding.activations import map_batch_shards


def apply_logits_processors(
    scores_BKV: jax.Array,
    sequences_BKT: jax.Array,
    index: jax.Array,
    plan: DecodeStatic,
    values: DecodeParams,
    states_BK: jax.Array | None = None,
) -> jax.Array:
    """Apply all processors of `plan` in transformers' order: float32[B, K, V], -inf for banned
    tokens.

    Args:
        scores_BKV: float32[B, K, V], logits (greedy, sampling) or log-probabilities (beams).
        sequences_BKT: int32[B, K, T], see the module docstring.
        index: int32[], position of the last token of the sequences.
        states_BK: int32[B, K], states of the automaton; needed when `values.constraint`.
    """
    optional = values.optional or OptionalValues()
    if optional.sequence_bias is not None:
        scores_BKV = bias_sequences(scores_BKV, sequences_BKT, index, optional.sequence_bias)
    scores_BKV = penalise_repetition(scores_BKV, sequences_BKT, index, values.repetition_penalty)
    before_bans_BKV = scores_BKV
    scores_BKV = ban_repeated_ngrams(scores_BKV, sequences_BKT, index, plan.no_repeat_ngram_size)
    if optional.bad_words is not None:
        scores_BKV = bias_sequences(scores_BKV, sequences_BKT, index, optional.bad_words)
    generated = index
    too_short = generated < values.min_new_tokens
    for eos_token_id in plan.eos_token_ids:
        scores_BKV = ban_token_if(too_short, scores_BKV, eos_token_id)
    if values.constraint is not None:
        # Suppression gives way here, as all bans do, where it would make an answer impossible.
        scores_BKV = suppress(scores_BKV, generated, optional)
    if values.constraint is not None:
        assert states_BK is not None
        remaining = values.max_new_tokens - generated
        legal_BKV = allowed_tokens(values.constraint, states_BK, sequences_BKT, index, remaining)
        scores_BKV = mask_illegal(scores_BKV, before_bans_BKV, legal_BKV)
    scores_BKV = force_token_if(generated == 0, scores_BKV, values.forced_bos_token_id)
    last = generated == values.max_new_tokens - 1
    scores_BKV = force_token_if(last, scores_BKV, values.forced_eos_token_id)
    if optional.decay is not None:
        scores_BKV = favour_end(scores_BKV, generated, optional.decay, plan.eos_token_ids)
    if values.constraint is None:
        scores_BKV = suppress(scores_BKV, generated, optional)
    if plan.do_sample:
        # Beams need a continuation beside the end tokens, so one more survives every filter.
        keep = 1 + len(plan.eos_token_ids) if plan.num_beams > 1 else 1
        scores_BKV = scores_BKV / values.temperature
        scores_BKV = keep_top_k(scores_BKV, plan.top_k, keep)
        scores_BKV = keep_top_p(scores_BKV, values.one_minus_top_p, keep)
        scores_BKV = filter_by_probability(scores_BKV, optional, keep)
    if plan.renormalize_logits:
        scores_BKV = jax.nn.log_softmax(scores_BKV, axis=-1)
    return scores_BKV


def penalise_repetition(
    scores_BKV: jax.Array, sequences_BKT: jax.Array, index: jax.Array, penalty: ArrayLike
) -> jax.Array:
    """Penalise tokens already in the sequence: multiply negative scores by `penalty`, divide
    others.

    Each token is penalised once however often it occurs. A penalty of 1 costs nothing.
    """

    def penalise(scores_BKV: jax.Array) -> jax.Array:
        positions_T = jnp.arange(sequences_BKT.shape[-1])
        seen_BKV = _mark_tokens(scores_BKV.shape, sequences_BKT, positions_T <= index)
        penalised_BKV = jnp.where(scores_BKV < 0, scores_BKV * penalty, scores_BKV / penalty)
        return jnp.where(seen_BKV, penalised_BKV, scores_BKV)

    return lax.cond(jnp.equal(penalty, 1.0), lambda scores: scores, penalise, scores_BKV)


def ban_repeated_ngrams(
    scores_BKV: jax.Array, sequences_BKT: jax.Array, index: jax.Array, size: int
) -> jax.Array:
    """Ban each token that would complete an n-gram which its sequence already holds.

    Every window of `size` tokens whose first `size - 1` equal the sequence's last `size - 1` bans
    its own last token. `size` 0 bans nothing; `size` 1 bans every token seen.
    """
    if size == 0:
        return scores_BKV
    length = sequences_BKT.shape[-1]
    windows = length - size + 1
    if windows < 1:
        return scores_BKV
    match_BKT = jnp.broadcast_to(
        # A window counts once its last token is in the sequence.
        jnp.arange(windows) + size - 1 <= index,
        (*sequences_BKT.shape[:2], windows),
    )
    for offset in range(size - 1):
        # While the sequence is shorter than `size` this start is clamped, but no window counts.
        suffix_BK1 = lax.dynamic_slice_in_dim(sequences_BKT, index + 2 - size + offset, 1, axis=2)
        window_BKT = sequences_BKT[:, :, offset : offset + windows]
        match_BKT &= window_BKT == suffix_BK1
    banned_BKV = _mark_tokens(scores_BKV.shape, sequences_BKT[:, :, size - 1 :], match_BKT)
    return jnp.where(banned_BKV, -jnp.inf, scores_BKV)


def ban_token_if(condition: jax.Array, scores_BKV: jax.Array, token: int) -> jax.Array:
    """Ban `token` while `condition` (bool[]) holds."""
    is_token_V = jnp.arange(scores_BKV.shape[-1]) == token
    return jnp.where(condition & is_token_V, -jnp.inf, scores_BKV)


def force_token_if(condition: jax.Array, scores_BKV: jax.Array, token: ArrayLike) -> jax.Array:
    """Force `token` while `condition` (bool[]) holds: 0 for it, -inf for the rest. -1 forces
    nothing.

    `token` is int32[], or int32[n] for a choice among several.
    """
    token_V = jnp.arange(scores_BKV.shape[-1])
    if jnp.ndim(token):
        forced_V = jnp.where(jnp.isin(token_V, token), 0.0, -jnp.inf)
        return jnp.where(condition, forced_V, scores_BKV)
    forced_V = jnp.where(token_V == token, 0.0, -jnp.inf)
    return jnp.where(condition & jnp.greater_equal(token, 0), forced_V, scores_BKV)


def keep_top_k(scores_BKV: jax.Array, count: int, keep: int) -> jax.Array:
    """Ban scores below the `count`-th highest; ties with it stay. 0 keeps all."""
    if count == 0:
        return scores_BKV
    vocab = scores_BKV.shape[-1]
    values, _ = top_k(scores_BKV.reshape(-1, vocab), min(max(count, keep), vocab))
    threshold_BK1 = values[:, -1].reshape(*scores_BKV.shape[:-1], 1)
    return jnp.where(scores_BKV < threshold_BK1, -jnp.inf, scores_BKV)


def keep_top_p(scores_BKV: jax.Array, one_minus_top_p: ArrayLike, keep: int) -> jax.Array:
    """Ban the least likely tokens that together hold at most `1 - top_p` of the probability.

    Equally likely tokens stay or go together; transformers' sort splits them anyhow.
    """

    def nucleus(scores_BKV: jax.Array) -> jax.Array:
        probs_BKV = jax.nn.softmax(scores_BKV, axis=-1)
        # Floats from zero on are ordered as their bits are, read as integers: halving the range 31
        # times finds the least likely token to stay, at a tenth of the cost of sorting.
        bits_BKV = lax.bitcast_convert_type(probs_BKV, jnp.int32)
        likeliest_BKn = lax.bitcast_convert_type(top_k(probs_BKV, keep)[0], jnp.int32)

        def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            goes_BK1, stays_BK1 = bounds
            middle_BK1 = goes_BK1 + (stays_BK1 - goes_BK1) // 2
            tail_BKV = jnp.where(bits_BKV <= middle_BK1, probs_BKV, 0.0)
            light_BK1 = jnp.sum(tail_BKV, axis=-1, keepdims=True) <= one_minus_top_p
            return (
                jnp.where(light_BK1, middle_BK1, goes_BK1),
                jnp.where(light_BK1, stays_BK1, middle_BK1),
            )

        highest_BK1 = likeliest_BKn[..., :1]
        bounds = (jnp.full_like(highest_BK1, -1), highest_BK1)
        _, stays_BK1 = lax.fori_loop(0, 31, halve, bounds)
        stays_BK1 = jnp.minimum(stays_BK1, likeliest_BKn[..., -1:])
        return jnp.where(bits_BKV < stays_BK1, -jnp.inf, scores_BKV)

    return lax.cond(jnp.greater(one_minus_top_p, 0), nucleus, lambda scores: scores, scores_BKV)


def _mark_tokens(
    shape_BKV: tuple[int, ...], tokens_BKT: jax.Array, wanted_BKT: jax.Array
) -> jax.Array:
    """bool[B, K, V]: which tokens occur in `tokens_BKT` where `wanted_BKT` holds."""
    vocab = shape_BKV[-1]
    return lax.platform_dependent(
        tokens_BKT,
        wanted_BKT,
        tpu=functools.partial(ngram_mask_matmul, vocab=vocab),
        default=functools.partial(ngram_mask_scatter, vocab=vocab),
    )


def ngram_mask_scatter(tokens_BKT: jax.Array, wanted_BKT: jax.Array, vocab: int) -> jax.Array:
    tokens_BKT = jnp.where(wanted_BKT, tokens_BKT, vocab)  # outside the vocabulary: dropped

    def mark(tokens_BKT: jax.Array) -> jax.Array:
        rows, beams, _ = tokens_BKT.shape
        row_B11 = jnp.arange(rows)[:, None, None]
        beam_1K1 = jnp.arange(beams)[None, :, None]
        marks_BKV = jnp.zeros((rows, beams, vocab), jnp.bool_)
        return marks_BKV.at[row_B11, beam_1K1, tokens_BKT].set(True, mode="drop")

    return map_batch_shards(mark, tokens_BKT)


def ngram_mask_matmul(tokens_BKT: jax.Array, wanted_BKT: jax.Array, vocab: int) -> jax.Array:
    """Mark tokens by a matrix product, for XLA:TPU, which scatters one token at a time. The count
    of a token is a product of two one-hot factors: its group of 128 neighbours (G) and its place in
    the group (L).
    """
    groups = -(-vocab // LANES)
    group_BKT = jnp.where(wanted_BKT, tokens_BKT // LANES, groups)
    group_BKGT = group_BKT[..., None, :] == jnp.arange(groups)[:, None]
    place_BKTL = (tokens_BKT % LANES)[..., None] == jnp.arange(LANES)
    counts_BKGL = jnp.einsum(
        "bkgt,bktl->bkgl", group_BKGT.astype(jnp.bfloat16), place_BKTL.astype(jnp.bfloat16)
    )
    return (counts_BKGL > 0).reshape(*tokens_BKT.shape[:-1], groups * LANES)[..., :vocab]
