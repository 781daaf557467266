"""Byte-level automata of texts and labels that the parser reads back unchanged.

Tokens of a byte-level vocabulary may end inside a character, so the rules are an automaton over
bytes, lifted to tokens: a token is allowed where all its bytes are, and leads where they lead.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Markup that the parser removes from any answer, and the beginning of a location.
_READ_AS_MARKUP = ("<s>", "</s>", "<pad>", "<loc_")
# Whitespace outside ASCII; all of it is below the surrogates.
_WHITESPACE = [chr(code).encode() for code in range(0x80, 0xD800) if chr(code).isspace()]
_WHITESPACE_BEGINNINGS = frozenset(
    character[:length] for character in _WHITESPACE for length in range(1, len(character))
)
# Lead bytes after which not every continuation byte makes a character (Unicode, table 3-7).
_SECOND_BYTE = {0xE0: (0xA0, 0xBF), 0xED: (0x80, 0x9F), 0xF0: (0x90, 0xBF), 0xF4: (0x80, 0x8F)}
# Other unfinished characters differ only in the number of missing bytes: one represents them.
_UNFINISHED = {1: b"\xc3", 2: b"\xe4", 3: b"\xf1"}


@dataclass(frozen=True, kw_only=True)
class TextRule:
    """A rule for text, which is always whole UTF-8 and spells no markup.

    Attributes:
        label: at least one character, no whitespace at either end, one line: what stands before a
            shape. Otherwise anything, nothing included.
        angle: may hold "<" where it does not begin markup. The labels of boxes and polygons may
            not.
    """

    label: bool
    angle: bool


FREE_TEXT = TextRule(label=False, angle=True)
OCR_LABEL = TextRule(label=True, angle=True)
LABEL = TextRule(label=True, angle=False)


class ByteAutomaton(NamedTuple):
    """A finite automaton over bytes.

    Attributes:
        next_state: int16[S, 256], -1 where the byte is not allowed. State 0 is the beginning.
        complete: bool[S], whether the text may end there.
    """

    next_state: np.ndarray
    complete: np.ndarray

    def accepts(self, text: str) -> bool:
        """Return whether the whole of `text` follows the rule."""
        state = 0
        for byte in text.encode("utf-8", "surrogatepass"):
            state = int(self.next_state[state, byte])
            if state < 0:
                return False
        return bool(self.complete[state])


class _Reading(NamedTuple):
    """A state of the automaton: what it needs to know of the text so far."""

    ends: str  # "blank" before a label's first character, else "solid" or "space": its last one
    unfinished: bytes = b""  # of a character
    markup: str = ""  # the longest end of the text that begins markup


@functools.cache
def byte_automaton(rule: TextRule) -> ByteAutomaton:
    """The automaton of `rule`, some 20 to 40 states."""
    readings = [_Reading("blank" if rule.label else "solid")]
    number_of = {readings[0]: 0}
    table = []
    # The list grows while it is walked, until every reading has had its turn.
    for reading in readings:
        row = np.full(256, -1, np.int16)
        for byte in range(256):
            after = _read_byte(reading, byte, rule)
            if after is None:
                continue
            if after not in number_of:
                number_of[after] = len(readings)
                readings.append(after)
            row[byte] = number_of[after]
        table.append(row)
    complete = [reading.ends == "solid" and not reading.unfinished for reading in readings]
    return ByteAutomaton(np.stack(table), np.asarray(complete))


def compose_with_tokenizer(automaton: ByteAutomaton, tokens: Sequence[bytes]) -> np.ndarray:
    """The state after each of N tokens from each state, int16[S, N]; -1 if it is not allowed."""
    dead = len(automaton.next_state)
    table = np.where(automaton.next_state < 0, np.int16(dead), automaton.next_state)
    table = np.vstack([table, np.full((1, 256), dead, np.int16)])
    lengths = np.array([len(token) for token in tokens])
    starts = np.cumsum(lengths) - lengths
    spelled = np.frombuffer(b"".join(tokens), np.uint8)
    reached = np.repeat(np.arange(dead, dtype=np.int16)[:, None], len(tokens), axis=1)
    for position in range(lengths.max(initial=0)):
        longer = np.flatnonzero(lengths > position)
        byte = spelled[starts[longer] + position]
        reached[:, longer] = table[reached[:, longer], byte]
    return np.where(reached == dead, np.int16(-1), reached)


def _read_byte(reading: _Reading, byte: int, rule: TextRule) -> _Reading | None:
    """The state after an ASCII `byte`; None if it is not allowed."""
    if reading.unfinished or byte >= 0x80:
        return _read_part(reading, byte, rule)
    character = chr(byte)
    if character == "<" and not rule.angle:
        return None
    ends = _ends(reading, character, rule)
    markup = reading.markup + character
    if not any(token.startswith(markup) for token in _READ_AS_MARKUP):
        markup = "<" if character == "<" else ""
    if ends is None or markup in _READ_AS_MARKUP:
        return None
    return _Reading(ends, markup=markup)


def _read_part(reading: _Reading, byte: int, rule: TextRule) -> _Reading | None:
    """The state after a byte of a character outside ASCII; None if it is not allowed."""
    begun = reading.unfinished
    low, high = 0xC2, 0xF4
    if begun:
        low, high = _SECOND_BYTE.get(begun[0], (0x80, 0xBF)) if len(begun) == 1 else (0x80, 0xBF)
    if not low <= byte <= high:
        return None
    begun += bytes([byte])
    length = 2 + (begun[0] >= 0xE0) + (begun[0] >= 0xF0)
    if len(begun) < length:
        alike = len(begun) > 1 or byte not in _SECOND_BYTE
        if alike and not (rule.label and begun in _WHITESPACE_BEGINNINGS):
            begun = _UNFINISHED[length - len(begun)]
        return _Reading(reading.ends, unfinished=begun)
    ends = _ends(reading, begun.decode(), rule)
    return None if ends is None else _Reading(ends)


def _ends(reading: _Reading, character: str, rule: TextRule) -> str | None:
    """The `ends` after `character`; None if the character is not allowed."""
    if not rule.label:
        return "solid"
    if not character.isspace():
        return "solid"
    return None if character == "\n" or reading.ends == "blank" else "space"
