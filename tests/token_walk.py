"""Token automata in plain Python, one sequence and one token at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DEAD, FINISHED = 0, 1


def next_state(automaton, state: int, before: Sequence[int], token: int) -> int:
    """Where `token` leads from `state`, which was reached by the tokens `before`."""
    if automaton.ordered[state]:
        location = automaton.location_of_token
        if location[token] < location[before[-2]]:
            return DEAD
    return int(automaton.next_state[state, automaton.class_of_token[token]])


def walk(automaton, start: int, ids: Sequence[int]) -> int:
    """The state after `ids`."""
    state = start
    for position, token in enumerate(ids):
        state = next_state(automaton, state, ids[:position], token)
        if state == DEAD:
            return DEAD
    return state


def accepts(automaton, start: int, ids: Sequence[int]) -> bool:
    """Whether `ids` are one answer, from beginning to end."""
    if walk(automaton, start, ids) != FINISHED:
        return False
    return list(ids).index(automaton.end_token) == len(ids) - 1


def walked_tokens(
    automaton, least: np.ndarray, start: int, ids: Sequence[int], remaining: int
) -> list[int]:
    """The tokens that may follow `ids` when `remaining` more may be generated."""
    state = walk(automaton, start, ids)
    tokens = range(len(automaton.class_of_token))
    after = [next_state(automaton, state, ids, token) for token in tokens]
    return [token for token in tokens if after[token] != DEAD and least[after[token]] < remaining]
