"""Automata over tokens: which token may follow what was generated so far.

A vocabulary's tokens fall into classes that every state treats alike (all text, but for a hundred
kinds; all locations), so that an automaton is a small table.
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
    """Which tokens are allowed, and where they lead. `generation.constraints` runs it.

    Attributes:
        class_of_token: int32[V], what kind of token each is.
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
    """The vocabulary of an automaton: tokens that it never tells apart share a class."""

    class_of_token: np.ndarray  # int32[V]
    count: int


@dataclass(kw_only=True)
class DFABuilder:
    """An automaton that is being drawn: states are numbered in the order in which they are added.

    Attributes:
        kinds: its vocabulary.
        end: the class of the end token.
        rows: int[C] per state, where each class leads.
        ordered: bool per state, see `TokenAutomaton`.
    """

    kinds: TokenClasses
    end: int
    rows: list[np.ndarray] = field(default_factory=list)
    ordered: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.rows:
            assert (self.add(), self.add()) == (DEAD, FINISHED)
            # A finished row of a batch is asked on, and needs something that it may say.
            self.link(FINISHED, {self.end: FINISHED})

    def add(self, *, like: int | None = None, ordered: bool = False) -> int:
        """A new state that allows nothing, or what the state `like` allows: its number."""
        blank = np.zeros(self.kinds.count, np.int32)
        self.rows.append(blank if like is None else self.rows[like].copy())
        self.ordered.append(ordered)
        return len(self.rows) - 1

    def link(self, state: int, targets: Mapping[int, int]) -> None:
        """In `state`, let each class of `targets` lead where it says."""
        for kind, target in targets.items():
            self.rows[state][kind] = target

    def chain(self, kind: int, ordered: list[bool], last: int) -> int:
        """As many states as `ordered` has entries, each allowing only `kind`, then `last`."""
        following = last
        for flag in reversed(ordered):
            state = self.add(ordered=flag)
            self.link(state, {kind: following})
            following = state
        return following

    def split(self, tokens: list[int]) -> DFABuilder:
        """A copy of this sketch in which each of `tokens` has a class of its own."""
        classes = self.kinds.class_of_token.copy()
        before = classes[tokens]
        classes[tokens] = self.kinds.count + np.arange(len(tokens))
        rows = np.stack(self.rows)
        return DFABuilder(
            kinds=TokenClasses(classes, self.kinds.count + len(tokens)),
            end=self.end,
            rows=list(np.hstack([rows, rows[:, before]])),
            ordered=list(self.ordered),
        )

    def automaton(self, location_of_token: np.ndarray, end_token: int) -> TokenAutomaton:
        """The finished automaton.

        Raises:
            ValueError: a table too large to be read at every token.
        """
        states, classes = len(self.rows), self.kinds.count
        if max(states, classes) > _LARGEST_NUMBER or states * classes > _LARGEST_TABLE:
            raise ValueError(
                f"the labels of these requests need a table of {states} states x {classes} kinds "
                f"of tokens, more than {_LARGEST_TABLE} entries or {_LARGEST_NUMBER} of either; "
                "give fewer labels, or ask in smaller batches"
            )
        return TokenAutomaton(
            class_of_token=self.kinds.class_of_token,
            location_of_token=location_of_token,
            next_state=np.stack(self.rows).astype(np.int16),
            ordered=np.asarray(self.ordered),
            end_token=end_token,
        )
