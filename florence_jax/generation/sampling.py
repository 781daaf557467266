"""Greedy decoding and sampling of independent sequences.

Semantics: transformers 5 `generation/utils.py: _sample`.

Shape suffixes: B batch, K samples of one row (1 when greedy), T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from florence_jax.generation.constraints import advance_states, init_states
from florence_jax.generation.decode_config import DecodeParams, DecodeStatic, ends
from florence_jax.generation.decode_loop import (
    Cache,
    StepFn,
    grow_axis,
    row_keys,
    step_keys,
    while_loop_with_growing_buffers,
)
from florence_jax.generation.logits_processors import apply_logits_processors
from florence_jax.generation.output import GenerateOutput


class SamplingState(NamedTuple):
    """The loop state of sampling."""

    index: jax.Array  # int32[]: position of the last token
    sequences: jax.Array  # int32[B, K, T + 1]
    token_scores: jax.Array  # float32[B, K, T]
    lengths: jax.Array  # int32[B, K]: generated tokens so far
    finished: jax.Array  # bool[B, K]
    cache: Cache
    states: jax.Array | None = None  # int32[B, K]: of the constraint, after the last tokens


def sample(
    step: StepFn,
    cache: Cache,
    batch: int,
    plan: DecodeStatic,
    values: DecodeParams,
    rng: jax.Array | None = None,
) -> GenerateOutput:
    """Take the best token, or sample one, until every sequence has ended.

    Args:
        step: the model, as `decode_loop.StepFn`, for K = `plan.num_return_sequences`.
        cache: its cache before the first token, with room for `plan.buffers[0]` of them.
        batch: B.
        plan, values: from `make_plan`, with `num_beams` 1.
        rng: a key; needed when `plan.do_sample`.

    Returns:
        Untrimmed output for B * K sequences, T = `plan.buffers[-1]`.
    """
    samples = plan.num_return_sequences
    keys_B = row_keys(rng, batch) if plan.do_sample else None

    def unfinished(state: SamplingState) -> jax.Array:
        return (state.index < values.max_new_tokens) & ~jnp.all(state.finished)

    def advance(state: SamplingState) -> SamplingState:
        tokens_BK = _at(state.sequences, state.index)
        logits_BKV, cache = step(tokens_BK, state.index, state.cache)
        scores_BKV = apply_logits_processors(
            logits_BKV.astype(jnp.float32),
            state.sequences,
            state.index,
            plan,
            values,
            state.states,
        )
        if keys_B is not None:
            next_BK = _draw(step_keys(keys_B, state.index), scores_BKV)
        else:
            next_BK = jnp.argmax(scores_BKV, axis=-1).astype(jnp.int32)
        chosen_BK = _log_prob(scores_BKV, next_BK)
        states = state.states
        # Before finished rows are padded: padding is legal nowhere.
        if values.constraint is not None:
            states = advance_states(values.constraint, states, next_BK)
        next_BK = jnp.where(state.finished, plan.pad_token_id, next_BK)
        chosen_BK = jnp.where(state.finished, 0.0, chosen_BK)
        return SamplingState(
            index=state.index + 1,
            sequences=_put(state.sequences, next_BK, state.index + 1),
            token_scores=_put(state.token_scores, chosen_BK, state.index),
            lengths=state.lengths + ~state.finished,
            finished=state.finished | ends(next_BK, plan),
            cache=cache,
            states=states,
        )

    def enlarge(state: SamplingState, buffer: int) -> SamplingState:
        return _lengthen(state, buffer, plan)._replace(cache=state.cache.resize(buffer))

    def result(state: SamplingState) -> SamplingState:
        # The cache stays behind: nothing attends to it any more.
        return _lengthen(state._replace(cache=None), plan.buffers[-1], plan)

    state = while_loop_with_growing_buffers(
        _initial_state(cache, batch, plan)._replace(states=init_states(values.constraint, samples)),
        plan.buffers,
        unfinished=unfinished,
        advance=advance,
        grow=enlarge,
        result=result,
    )
    norm_BK = jnp.asarray(values.length_norm)[state.lengths]
    return GenerateOutput(
        sequences=state.sequences.reshape(batch * samples, -1),
        sequence_scores=(state.token_scores.sum(-1) / norm_BK).reshape(-1),
        token_scores=state.token_scores.reshape(batch * samples, -1),
        lengths=state.lengths.reshape(-1),
    )


def _initial_state(cache: Cache, batch: int, plan: DecodeStatic) -> SamplingState:
    samples, buffer = plan.num_return_sequences, plan.buffers[0]
    blank = jnp.full((batch, samples, buffer + 1), plan.pad_token_id, jnp.int32)
    return SamplingState(
        index=jnp.zeros((), jnp.int32),
        sequences=blank.at[:, :, 0].set(plan.decoder_start_token_id),
        token_scores=jnp.zeros((batch, samples, buffer), jnp.float32),
        lengths=jnp.zeros((batch, samples), jnp.int32),
        finished=jnp.zeros((batch, samples), jnp.bool_),
        cache=cache,
    )


def _lengthen(state: SamplingState, buffer: int, plan: DecodeStatic) -> SamplingState:
    return state._replace(
        sequences=grow_axis(state.sequences, 2, buffer + 1, plan.pad_token_id),
        token_scores=grow_axis(state.token_scores, 2, buffer),
    )


def _draw(keys_B: jax.Array, scores_BKV: jax.Array) -> jax.Array:
    """Sample one token per sequence from softmax(scores): int32[B, K]."""
    draw = jax.vmap(lambda key, scores_KV: jax.random.categorical(key, scores_KV))
    return draw(keys_B, scores_BKV).astype(jnp.int32)


def _log_prob(scores_BKV: jax.Array, tokens_BK: jax.Array) -> jax.Array:
    """log softmax(scores) at `tokens`, float32[B, K], without computing it for the other V - 1
    tokens.
    """
    chosen_BK = jnp.take_along_axis(scores_BKV, tokens_BK[..., None], axis=-1)[..., 0]
    return chosen_BK - jax.nn.logsumexp(scores_BKV, axis=-1)


def _at(sequences_BKT: jax.Array, index: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(sequences_BKT, index, axis=2, keepdims=False)


def _put(buffer_BKT: jax.Array, column_BK: jax.Array, index: jax.Array) -> jax.Array:
    return lax.dynamic_update_index_in_dim(buffer_BKT, column_BK, index, axis=2)
