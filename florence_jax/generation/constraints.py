"""Constrained decoding: an automaton over tokens, run inside the compiled loop.

Every row of a batch walks the same table from its own start state, so that tasks and lists of
labels mix in one program. Tables are padded to powers of two, so that most lists share a program. A
token is legal if the automaton allows it and the answer can still be completed within the token
limit; answers that reach the limit are therefore complete.

Shape suffixes: B batch, K beams, T tokens, S states, C classes of tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from florence_jax.generation_config import TokenIds

# The states that every automaton begins with: after a token that is not allowed, and after the end.
DEAD, FINISHED = 0, 1
NEVER = 2**30

# A list of a hundred labels or two fits, beside the forms of all tasks.
_LEAST_STATES, _LEAST_CLASSES = 1024, 256


class Automaton(Protocol):
    """The automaton that a constraint is made of, see `florence_jax.constrained.token_dfa`."""

    @property
    def class_of_token(self) -> np.ndarray: ...  # int[V]
    @property
    def location_of_token(self) -> np.ndarray: ...  # int[V], -1 for other tokens
    @property
    def next_state(self) -> np.ndarray: ...  # int[S, C], DEAD if a token is not allowed
    @property
    def ordered(self) -> np.ndarray: ...  # bool[S]


class Constraint(NamedTuple):
    """An automaton as arrays, with the start state of each row of a batch. All of it is traced.

    In an `ordered` state a token is legal only if its location is not below that of the token two
    before it.
    """

    class_of_token: ArrayLike  # int32[V]
    location_of_token: ArrayLike  # int32[V]: the bin, -1 for other tokens
    next_state: ArrayLike  # int16[S, C]
    least_tokens: ArrayLike  # int32[S]: that complete an answer from here, the end token included
    ordered: ArrayLike  # bool[S]
    start: ArrayLike  # int32[B]

    def repeated(self, batch: int) -> Constraint:
        """The constraint of `batch` rows that all start in the first row's state."""
        return self._replace(start=np.full(batch, np.asarray(self.start)[0], np.int32))


def make_constraint(automaton: Automaton, start: Sequence[int]) -> Constraint:
    """Pad an automaton's table and compute the distance of each state from the end.

    Args:
        automaton: its state 0 is `DEAD` and its state 1 `FINISHED`.
        start: the start state of each row of the batch.
    """
    states, classes = automaton.next_state.shape
    room = (power_of_two(states, _LEAST_STATES), power_of_two(classes, _LEAST_CLASSES))
    next_state = np.zeros(room, np.int16)
    # A class without tokens leads nowhere: no way to the end may count on it.
    used = np.unique(automaton.class_of_token)
    next_state[:states, used] = automaton.next_state[:, used]
    ordered = np.zeros(room[0], np.bool_)
    ordered[:states] = automaton.ordered
    return Constraint(
        class_of_token=automaton.class_of_token.astype(np.int32),
        location_of_token=automaton.location_of_token.astype(np.int32),
        next_state=next_state,
        least_tokens=least_tokens(next_state),
        ordered=ordered,
        start=np.asarray(start, np.int32),
    )


def least_tokens(next_state: np.ndarray) -> np.ndarray:
    """int32[S]: the fewest tokens from each state to `FINISHED`; `NEVER` if it is out of reach."""
    sources, classes = np.nonzero(next_state)
    targets = next_state[sources, classes]
    least = np.full(len(next_state), NEVER, np.int32)
    least[FINISHED] = 0
    reached = np.array([FINISHED])
    distance = 0
    while reached.size:
        distance += 1
        reached = np.unique(sources[np.isin(targets, reached)])
        reached = reached[least[reached] == NEVER]
        least[reached] = distance
    least[DEAD] = NEVER
    return least


def check_constraint(
    constraint: Constraint,
    *,
    vocab_size: int,
    eos_token_ids: Sequence[int],
    forced_bos_token_id: int | None,
    forced_eos_token_id: TokenIds | None,
    max_new_tokens: int,
) -> None:
    """Check that these settings leave room for whole answers.

    Raises:
        ValueError: another vocabulary, forced tokens that contradict the constraint, or a limit
            below the shortest answer.
    """
    classes = np.asarray(constraint.class_of_token)
    table, least = np.asarray(constraint.next_state), np.asarray(constraint.least_tokens)
    states = np.asarray(constraint.start)
    if len(classes) != vocab_size:
        raise ValueError(
            f"the constraint is for a vocabulary of {len(classes)} tokens, the model has "
            f"{vocab_size}; make it with the model's vocab_size"
        )
    ends = _ends(constraint)
    if not ends or not set(ends) <= set(eos_token_ids):
        raise ValueError(
            f"eos_token_id={_said(eos_token_ids)}, but constrained answers end with {ends}: make "
            "the constraint with the model's own tokenizer"
        )
    if forced_eos_token_id is not None:
        forced_ends = np.atleast_1d(forced_eos_token_id).tolist()
        if not set(forced_ends) <= set(ends):
            raise ValueError(
                f"forced_eos_token_id={_said(forced_ends)} would break off a constrained answer: "
                f"leave it at the model's, {_said(ends)}, or None"
            )
    forced = 0
    if forced_bos_token_id is not None:
        forced, states = 1, table[states, classes[forced_bos_token_id]]
        if (states == DEAD).any():
            raise ValueError(
                f"forced_bos_token_id={forced_bos_token_id} is not what a constrained answer may "
                "begin with: leave it at the model's, or None"
            )
    needed = least[states] + forced
    worst = int(needed.argmax())
    if needed[worst] > max_new_tokens:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} is too few for a whole answer: the shortest that "
            f"the constraint allows in row {worst} takes {needed[worst]} tokens, <s> and </s> "
            "included"
        )


def ended_by(constraint: Constraint, eos_token_ids: Sequence[int]) -> Constraint:
    """The constraint with all of `eos_token_ids` ending an answer.

    Answers stay complete: an end token that the constraint treats as an ordinary token would cut
    them off, so it becomes illegal inside answers. With one end token nothing changes.
    """
    within = sorted(set(eos_token_ids) - set(_ends(constraint)))
    if len(eos_token_ids) == 1 or not within:
        return constraint
    table = np.array(constraint.next_state)
    classes = np.array(constraint.class_of_token)
    within = [token for token in within if token < len(classes) and table[:, classes[token]].any()]
    if not within:
        return constraint
    nowhere = np.flatnonzero(~table.any(axis=0))
    if not len(nowhere):
        table = np.pad(table, ((0, 0), (0, table.shape[1])))
        nowhere = np.flatnonzero(~table.any(axis=0))
    classes[within] = nowhere[0]
    # No way to the end may count on a class that is left without tokens.
    table[:, np.setdiff1d(np.arange(table.shape[1]), classes)] = DEAD
    return constraint._replace(
        class_of_token=classes, next_state=table, least_tokens=least_tokens(table)
    )


def _ends(constraint: Constraint) -> list[int]:
    """The tokens that end an answer."""
    finishes = (np.asarray(constraint.next_state) == FINISHED).any(axis=0)
    return np.flatnonzero(finishes[np.asarray(constraint.class_of_token)]).tolist()


def _said(ids: Sequence[int]) -> str:
    return str(ids[0] if len(ids) == 1 else list(ids))


def check_rows(constraint: Constraint, batch: int) -> None:
    """Check that the constraint has a start for each row of the batch.

    Raises:
        ValueError: it has another number of starts.
    """
    rows = np.shape(constraint.start)
    if rows != (batch,):
        raise ValueError(f"the constraint starts {list(rows)} rows, but there are {batch} prompts")


def init_states(constraint: Constraint | None, beams: int) -> jax.Array | None:
    """The start states int32[B, K]; None without a constraint."""
    if constraint is None:
        return None
    start_B = jnp.asarray(constraint.start)
    return jnp.broadcast_to(start_B[:, None], (start_B.shape[0], beams))


def advance_states(
    constraint: Constraint, states_BK: jax.Array | None, tokens_BK: jax.Array
) -> jax.Array:
    """The states int32[B, K] after `tokens_BK`."""
    classes_BK = jnp.asarray(constraint.class_of_token)[tokens_BK]
    return jnp.asarray(constraint.next_state)[states_BK, classes_BK].astype(jnp.int32)


def allowed_tokens(
    constraint: Constraint,
    states_BK: jax.Array,
    sequences_BKT: jax.Array,
    index: jax.Array,
    remaining: ArrayLike,
) -> jax.Array:
    """bool[B, K, V]: the tokens after which an answer can still be completed.

    Args:
        states_BK: int32[B, K], after the sequences' last tokens.
        sequences_BKT, index: as for `logits_processors.apply_logits_processors`.
        remaining: int32[], tokens that may still be generated.
    """
    after_BKC = jnp.asarray(constraint.next_state)[states_BK]
    legal_BKC = jnp.less(jnp.asarray(constraint.least_tokens)[after_BKC], remaining)
    classes_V = jnp.asarray(constraint.class_of_token)
    legal_BKV = legal_BKC.at[:, :, classes_V].get(mode="promise_in_bounds")
    location_V = jnp.asarray(constraint.location_of_token)
    two_before_BK = lax.dynamic_index_in_dim(
        sequences_BKT, jnp.maximum(index - 1, 0), axis=2, keepdims=False
    )
    ordered_BK = jnp.asarray(constraint.ordered)[states_BK]
    lowest_BK = jnp.where(ordered_BK, location_V[two_before_BK], -1)
    return legal_BKV & (location_V >= lowest_BK[..., None])


def mask_illegal(
    scores_BKV: jax.Array, before_bans_BKV: jax.Array, legal_BKV: jax.Array
) -> jax.Array:
    """Set the score of every illegal token to -inf.

    Bans (of repeated n-grams, of an early end) give way where they leave a sequence no legal token:
    its scores are then those from before the bans. transformers' `prefix_allowed_tokens_fn` gives
    the legal tokens equal scores in that case, which takes the lowest id.
    """
    possible_BKV = legal_BKV & ~jnp.isneginf(scores_BKV)
    possible_BK1 = jnp.any(possible_BKV, axis=-1, keepdims=True)
    scores_BKV = jnp.where(possible_BK1, scores_BKV, before_bans_BKV)
    return jnp.where(legal_BKV, scores_BKV, -jnp.inf)


def power_of_two(count: int, least: int = 1) -> int:
    """The smallest power of two that is at least `count` and `least`."""
    return max(least, 1 << (count - 1).bit_length())
