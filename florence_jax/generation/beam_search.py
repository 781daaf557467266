"""Beam search and beam sampling over a `tokens -> logits` callback.

Semantics: transformers 5 `generation/utils.py: _beam_search`, its arithmetic included: the -1e9
that keeps a hypothesis out of a ranking is *added*, because which of several excluded hypotheses
survives, and with what score, follows from the rounding.

Shape suffixes: B batch, K beams, N candidates (2 K with one end token), T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from florence_jax.generation.constraints import DEAD, FINISHED, advance_states, init_states
from florence_jax.generation.decode_config import DecodeParams, DecodeStatic, ends
from florence_jax.generation.decode_loop import (
    Cache,
    StepFn,
    gather_beams,
    grow_axis,
    row_keys,
    step_keys,
    while_loop_with_growing_buffers,
)
from florence_jax.generation.logits_processors import apply_logits_processors
from florence_jax.generation.output import GenerateOutput
from florence_jax.ops.top_k import top_k

NEG_INF = -1.0e9


class Hypotheses(NamedTuple):
    """Sequences with their scores; the second axis is K, N or both joined."""

    tokens: jax.Array  # int32[B, K, T + 1]
    token_scores: jax.Array  # float32[B, K, T]
    lengths: jax.Array  # int32[B, K]: generated tokens
    scores: jax.Array  # float32[B, K]: sum of token scores; divided by length once finished


class BeamState(NamedTuple):
    """The loop state of beam search."""

    index: jax.Array  # int32[]: position of the running hypotheses' last token
    running: Hypotheses
    finished: Hypotheses  # the best K so far, best first; places not yet taken score NEG_INF
    is_finished: jax.Array  # bool[B, K]: which places of `finished` are taken
    can_improve: jax.Array  # bool[B]: a running hypothesis may still beat a finished one
    cache: Cache
    states: jax.Array | None = None  # int32[B, K]: of the constraint, after the running hypotheses


def beam_search(
    step: StepFn,
    cache: Cache,
    batch: int,
    plan: DecodeStatic,
    values: DecodeParams,
    rng: jax.Array | None = None,
) -> GenerateOutput:
    """Keep the K best hypotheses of each row until none can improve on the finished ones.

    Args:
        step: the model, as `decode_loop.StepFn`, for K = `plan.num_beams`.
        cache: its cache before the first token, with room for `plan.buffers[0]` of them.
        batch: B.
        plan, values: from `make_plan`, with `num_beams` above 1.
        rng: a key; needed when `plan.do_sample`.

    Returns:
        Untrimmed output for B * `plan.num_return_sequences` sequences, T = `plan.buffers[-1]`.
    """
    beams, early = plan.num_beams, plan.early_stopping is True
    keys_B = row_keys(rng, batch) if plan.do_sample else None

    def unfinished(state: BeamState) -> jax.Array:
        settled_B = ~state.can_improve
        if early:
            settled_B |= jnp.all(state.is_finished, axis=1)
        return (state.index < values.max_new_tokens) & ~jnp.all(settled_B)

    def advance(state: BeamState) -> BeamState:
        index, running = state.index, state.running
        tokens_BK = lax.dynamic_index_in_dim(running.tokens, index, axis=2, keepdims=False)
        logits_BKV, cache = step(tokens_BK, index, state.cache)
        log_probs_BKV = jax.nn.log_softmax(logits_BKV.astype(jnp.float32), axis=-1)
        log_probs_BKV = apply_logits_processors(
            log_probs_BKV, running.tokens, index, plan, values, state.states
        )
        step_keys_B = None if keys_B is None else step_keys(keys_B, index)
        candidates, parents_BN, ends_BN = _extend(
            running, log_probs_BKV, index, plan, values, step_keys_B
        )

        going_BN = candidates.scores + ends_BN * NEG_INF
        _, chosen_BK = top_k(going_BN, beams)
        running = gather_beams(candidates._replace(scores=going_BN), chosen_BK)
        parents_BK = jnp.take_along_axis(parents_BN, chosen_BK, axis=1)

        finished, is_finished = _keep_best_finished(state, candidates, ends_BN, early, values)
        return BeamState(
            index=index + 1,
            running=running,
            finished=finished,
            is_finished=is_finished,
            can_improve=state.can_improve
            & _may_improve(running, finished, is_finished, index + 1, plan, values),
            cache=cache.reorder(parents_BK),
            states=_advance_states(state.states, parents_BK, running.tokens, index, values),
        )

    def enlarge(state: BeamState, buffer: int) -> BeamState:
        return state._replace(
            running=_lengthen(state.running, buffer, plan.pad_token_id),
            finished=_lengthen(state.finished, buffer, plan.pad_token_id),
            cache=state.cache.resize(buffer),
        )

    returned, buffer = plan.num_return_sequences, plan.buffers[-1]

    def result(state: BeamState) -> Hypotheses:
        finished = state.finished
        if values.constraint is not None:
            finished = _repeat_best(finished, state.is_finished)
        finished = jax.tree.map(lambda leaf: leaf[:, :returned], finished)
        return _lengthen(finished, buffer, plan.pad_token_id)

    finished = while_loop_with_growing_buffers(
        _initial_state(cache, batch, plan)._replace(states=init_states(values.constraint, beams)),
        plan.buffers,
        unfinished=unfinished,
        advance=advance,
        grow=enlarge,
        result=result,
    )
    return GenerateOutput(
        sequences=finished.tokens.reshape(batch * returned, buffer + 1),
        sequence_scores=finished.scores.reshape(-1),
        token_scores=finished.token_scores.reshape(batch * returned, buffer),
        lengths=finished.lengths.reshape(-1),
    )


def _initial_state(cache: Cache, batch: int, plan: DecodeStatic) -> BeamState:
    beams, buffer = plan.num_beams, plan.buffers[0]
    blank = jnp.full((batch, beams, buffer + 1), plan.pad_token_id, jnp.int32)
    start = Hypotheses(
        tokens=blank.at[:, :, 0].set(plan.decoder_start_token_id),
        token_scores=jnp.zeros((batch, beams, buffer), jnp.float32),
        lengths=jnp.zeros((batch, beams), jnp.int32),
        scores=jnp.full((batch, beams), NEG_INF, jnp.float32),
    )
    return BeamState(
        index=jnp.zeros((), jnp.int32),
        # All beams start equal: only the first may continue, or all would generate the same.
        running=start._replace(scores=start.scores.at[:, 0].set(0.0)),
        finished=start,
        is_finished=jnp.zeros((batch, beams), jnp.bool_),
        can_improve=jnp.ones((batch,), jnp.bool_),
        cache=cache,
    )


def _lengthen(hypotheses: Hypotheses, buffer: int, pad_token_id: int) -> Hypotheses:
    return hypotheses._replace(
        tokens=grow_axis(hypotheses.tokens, 2, buffer + 1, pad_token_id),
        token_scores=grow_axis(hypotheses.token_scores, 2, buffer),
    )


def _extend(
    running: Hypotheses,
    log_probs_BKV: jax.Array,
    index: jax.Array,
    plan: DecodeStatic,
    values: DecodeParams,
    keys_B: jax.Array | None,
) -> tuple[Hypotheses, jax.Array, jax.Array]:
    """The 2 K best (or sampled) one-token continuations of a row's beams.

    At most K of 2 K can end here (one `</s>` per beam), so that K continue. Each further end token
    adds K.

    Returns:
        The continuations, the beam that each extends (int32[B, N]) and whether it ends (bool[B,
        N]).
    """
    _, beams, vocab = log_probs_BKV.shape
    total_BKV = log_probs_BKV + running.scores[..., None]
    if keys_B is not None:
        # Gumbel top-k: N draws without replacement, in the order in which they were drawn.
        draw = jax.vmap(lambda key: jax.random.gumbel(key, (beams, vocab)))
        total_BKV += draw(keys_B)
    wanted = (1 + len(plan.eos_token_ids)) * beams
    parents_BN, tokens_BN = _best_of_all_beams(total_BKV, min(wanted, beams * vocab))

    def of_row(log_probs_KV: jax.Array, parents_N: jax.Array, tokens_N: jax.Array) -> jax.Array:
        return log_probs_KV.at[parents_N, tokens_N].get(mode="promise_in_bounds")

    chosen_BN = jax.vmap(of_row)(log_probs_BKV, parents_BN, tokens_BN)
    scores_BN = chosen_BN + jnp.take_along_axis(running.scores, parents_BN, axis=1)
    parents = gather_beams(running, parents_BN)
    candidates = Hypotheses(
        tokens=lax.dynamic_update_index_in_dim(parents.tokens, tokens_BN, index + 1, axis=2),
        token_scores=lax.dynamic_update_index_in_dim(
            parents.token_scores, chosen_BN, index, axis=2
        ),
        lengths=jnp.full_like(parents.lengths, index + 1),
        scores=scores_BN,
    )
    ends_BN = ends(tokens_BN, plan) | (index + 1 >= values.max_new_tokens)
    return candidates, parents_BN, ends_BN


def _best_of_all_beams(scores_BKV: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The beams and tokens of the `count` best of a row's K * V scores: int32[B, N] each."""
    batch, _, vocab = scores_BKV.shape
    # Top-k within each beam, then among the beams: one row of K * V would need a copy.
    each = min(count, vocab)
    scores_BKN, tokens_BKN = top_k(scores_BKV, each)
    _, places_BN = top_k(scores_BKN.reshape(batch, -1), count)
    tokens_BN = jnp.take_along_axis(tokens_BKN.reshape(batch, -1), places_BN, axis=1)
    return places_BN // each, tokens_BN


def _keep_best_finished(
    state: BeamState,
    candidates: Hypotheses,
    ends_BN: jax.Array,
    early: bool,
    values: DecodeParams,
) -> tuple[Hypotheses, jax.Array]:
    """The K best among finished hypotheses and candidates that finish at this token."""
    beams, count = state.is_finished.shape[1], ends_BN.shape[1]
    # Candidates beyond the first K are there to keep the search going, not to be returned.
    finishes_BN = ends_BN & (jnp.arange(count) < beams)
    scores_BN = candidates.scores / jnp.asarray(values.length_norm)[state.index + 1]
    if early:
        full_B1 = jnp.all(state.is_finished, axis=1, keepdims=True)
        scores_BN += full_B1 * NEG_INF
    scores_BN += ~state.can_improve[:, None] * NEG_INF
    scores_BN += ~finishes_BN * NEG_INF
    # Candidates first: where places are left over, all at NEG_INF, the longest unfinished
    # hypotheses fill them, so that a row without any finished sequence still returns one.
    merged = jax.tree.map(
        lambda new, old: jnp.concatenate([new, old], axis=1),
        (candidates._replace(scores=scores_BN), finishes_BN),
        (state.finished, state.is_finished),
    )
    _, kept_BK = top_k(merged[0].scores, beams)
    return gather_beams(merged, kept_BK)


def _advance_states(
    states_BK: jax.Array | None,
    parents_BK: jax.Array,
    tokens_BKT: jax.Array,
    index: jax.Array,
    values: DecodeParams,
) -> jax.Array | None:
    """The constraint's states after the tokens at `index`; None without a constraint."""
    if values.constraint is None:
        return None
    tokens_BK = lax.dynamic_index_in_dim(tokens_BKT, index + 1, axis=2, keepdims=False)
    states_BK = advance_states(values.constraint, gather_beams(states_BK, parents_BK), tokens_BK)
    # Hypotheses that have ended continue only if nothing else is legal. They may not generate more,
    # or they would take the places of finished ones.
    return jnp.where(states_BK == FINISHED, DEAD, states_BK)


def _repeat_best(finished: Hypotheses, is_finished_BK: jax.Array) -> Hypotheses:
    """Fill places without a finished hypothesis with the best one, scored NEG_INF.

    A constraint may allow fewer answers than there are beams; unfinished hypotheses would fill the
    other places.
    """
    own_BK = jnp.where(is_finished_BK, jnp.arange(is_finished_BK.shape[1]), 0)
    repeated = gather_beams(finished, own_BK)
    return repeated._replace(scores=jnp.where(is_finished_BK, repeated.scores, NEG_INF))


def _may_improve(
    running: Hypotheses,
    finished: Hypotheses,
    is_finished_BK: jax.Array,
    length: jax.Array,
    plan: DecodeStatic,
    values: DecodeParams,
) -> jax.Array:
    """bool[B]: whether the best running hypothesis, once finished, could beat the worst finished
    one.

    `length` is the running hypotheses' number of generated tokens.
    """
    if plan.early_stopping == "never":
        length = jnp.where(values.prefers_long, values.max_new_tokens, length)
    reachable_B = running.scores[:, 0] / jnp.asarray(values.length_norm)[length]
    worst_BK = jnp.where(is_finished_BK, jnp.min(finished.scores, axis=1, keepdims=True), NEG_INF)
    return jnp.any(reachable_B[:, None] > worst_BK, axis=1)
