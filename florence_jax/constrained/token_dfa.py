"""Finite automata over tokens, and a builder for them.

Tokens that every state treats alike share a class (all locations are one class, text has about a
hundred), so that the table of an automaton is small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

# The two states that every automaton has.
DEAD = 0  # where a token leads that is not allowed
FINISHED = 1  # after the end token

# A table is read row by row on the device, and numbered with 16 bits.
_LARGEST_NUMBER = 2**15 - 1
_LARGEST_TABLE = 2**25


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenAutomaton:
    """A finite automaton over tokens; `generation.constraints` runs it on the device.

    Attributes:
        class_of_token: int32[V], the class of each token.
        location_of_token: int32[V], the bin of `<loc_N>`, -1 for other tokens.
        next_state: int16[S, C], the state after a token of each class, `DEAD` where it is not
            allowed.
        ordered: bool[S]. There the next token is a location, and its bin must not be below that of
            the token two before it: x1 after x0 y0, y1 after y0 x1.
        end_token: the token after which an answer is complete.
    """

    class_of_token: np.ndarray
    location_of_token: np.ndarray
    next_state: np.ndarray
    ordered: np.ndarray
    end_token: int


class TokenClasses(NamedTuple):
    """Classes of tokens that an automaton never tells apart."""

    class_of_token: np.ndarray  # int32[V]
    count: int


@dataclass(kw_only=True)
class DFABuilder:
    """Builds an automaton state by state; states are numbered in the order of `add`.

    Attributes:
        classes: its vocabulary.
        end: the class of the end token.
        rows: int[C] per state, where each class leads.
        ordered: bool per state, see `TokenAutomaton`.
    """

    classes: TokenClasses
    end: int
    rows: list[np.ndarray] = field(default_factory=list)
    ordered: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.rows:
            assert (self.add(), self.add()) == (DEAD, FINISHED)
            # Finished rows stay in the batch, and need a token that they may generate.
            self.link(FINISHED, {self.end: FINISHED})

    def add(self, *, like: int | None = None, ordered: bool = False) -> int:
        """Add a state that allows nothing, or what the state `like` allows; returns its number."""
        blank = np.zeros(self.classes.count, np.int32)
        self.rows.append(blank if like is None else self.rows[like].copy())
        self.ordered.append(ordered)
        return len(self.rows) - 1

    def link(self, state: int, targets: Mapping[int, int]) -> None:
        """Let each class in `targets` lead from `state` to its target."""
        for token_class, target in targets.items():
            self.rows[state][token_class] = target

    def chain(self, token_class: int, ordered: list[bool], last: int) -> int:
        """Add a state for each entry of `ordered` that allows only `token_class`, then `last`."""
        following = last
        for flag in reversed(ordered):
            state = self.add(ordered=flag)
            self.link(state, {token_class: following})
            following = state
        return following

    def split(self, tokens: list[int]) -> DFABuilder:
        """A copy of this builder in which each of `tokens` has a class of its own."""
        classes = self.classes.class_of_token.copy()
        before = classes[tokens]
        classes[tokens] = self.classes.count + np.arange(len(tokens))
        rows = np.stack(self.rows)
        return DFABuilder(
            classes=TokenClasses(classes, self.classes.count + len(tokens)),
            end=self.end,
            rows=list(np.hstack([rows, rows[:, before]])),
            ordered=list(self.ordered),
        )

    def automaton(self, location_of_token: np.ndarray, end_token: int) -> TokenAutomaton:
        """The finished automaton.

        Raises:
            ValueError: a table too large to be read at every token.
        """
        states, classes = len(self.rows), self.classes.count
        if max(states, classes) > _LARGEST_NUMBER or states * classes > _LARGEST_TABLE:
            raise ValueError(
                f"the labels of these requests need a table of {states} states x {classes} "
                f"classes of tokens, more than {_LARGEST_TABLE} entries or {_LARGEST_NUMBER} of "
                "either; give fewer labels, or ask in smaller batches"
            )
        return TokenAutomaton(
            class_of_token=self.classes.class_of_token,
            location_of_token=location_of_token,
            next_state=np.stack(self.rows).astype(np.int16),
            ordered=np.asarray(self.ordered),
            end_token=end_token,
        )
