"""What text and labels may be, against plain Python on the decoded text."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from florence_jax.constrained.byte_dfa import (
    FREE_TEXT,
    LABEL,
    OCR_LABEL,
    byte_automaton,
    compose_with_tokenizer,
)

fuzz = settings(max_examples=400)
MARKUP = ("<s>", "</s>", "<pad>", "<loc_")


def is_free_text(text):
    return not any(token in text for token in MARKUP)


def is_ocr_label(text):
    return bool(text) and text == text.strip() and "\n" not in text and is_free_text(text)


def is_label(text):
    return is_ocr_label(text) and "<" not in text


RULES = [(FREE_TEXT, is_free_text), (OCR_LABEL, is_ocr_label), (LABEL, is_label)]
every_rule = pytest.mark.parametrize(("rule", "reference"), RULES)

# fmt: off
pieces = st.one_of(
    st.sampled_from(["cat", " ", "\n", "<", "</", "<s", "<s>", "</s", ">", "s>", "<p", "<pa", "ad>",
                     "<loc", "_", "<l", "oc_", "<<", "é", "中", "🦄", "\x1f", "\x85", "\xa0",
                     "\u1680", "\u2000", "\u200a", "\u2028", "\u2029", "\u202f", "\u205f",
                     "\u3000", "\u200b", "\ufeff", "\ufffd"]),
    st.characters(codec="utf-8"),
)
# fmt: on
texts = st.lists(pieces, max_size=6).map("".join)
raw = st.lists(
    st.one_of(
        texts.map(str.encode),
        st.binary(max_size=3),
        st.sampled_from([b"\xc2", b"\xe2\x80", b"\xe0\x80", b"\xed\xa0\x80", b"\xf4\x90", b"\xe3"]),
    ),
    max_size=4,
).map(b"".join)


def walk(automaton, written: bytes) -> bool:
    state = 0
    for byte in written:
        state = int(automaton.next_state[state, byte])
        if state < 0:
            return False
    return bool(automaton.complete[state])


@every_rule
@fuzz
@given(written=raw)
@example(written=b"a<<s>")
@example(written=b"<</s>")
@example(written="a\u3000".encode())
@example(written="\u2028a".encode())
@example(written=b"\xf0\x8f\xbf\xbf")
def test_bytes_are_accepted_where_their_text_is(rule, reference, written):
    try:
        expected = reference(written.decode("utf-8"))
    except UnicodeDecodeError:
        expected = False
    assert walk(byte_automaton(rule), written) == expected


@every_rule
def test_every_character_alone_and_after_another(rule, reference):
    automaton = byte_automaton(rule)
    for code in (*range(0x800), *range(0x1600, 0x3100), 0xFEFF, 0xFFFF, 0x10000, 0x10FFFF):
        for text in (chr(code), "a" + chr(code), chr(code) + "a"):
            assert automaton.accepts(text) == reference(text), repr(text)
    assert not automaton.accepts("\ud800")


@every_rule
@fuzz
@given(tokens=st.lists(st.binary(min_size=1, max_size=5), min_size=1, max_size=6))
def test_a_token_leads_where_its_bytes_do(rule, reference, tokens):
    automaton = byte_automaton(rule)
    table = compose_with_tokenizer(automaton, tokens)
    for state in range(len(automaton.next_state)):
        for number, token in enumerate(tokens):
            reached = state
            for byte in token:
                reached = -1 if reached < 0 else int(automaton.next_state[reached, byte])
            assert table[state, number] == reached


def test_no_state_is_a_trap():
    """From everywhere some bytes lead to where the text may end."""
    for rule, _ in RULES:
        automaton = byte_automaton(rule)
        good = automaton.complete.copy()
        for _ in range(4):
            leads = automaton.next_state >= 0
            good |= (leads & good[np.where(leads, automaton.next_state, 0)]).any(axis=1)
        assert good.all()
