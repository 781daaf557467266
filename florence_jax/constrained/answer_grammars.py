"""What each task's answer may be, as automata over a tokenizer's tokens.

They allow what the parser reads whole: boxes in fours with x0 <= x1 and y0 <= y1, quads in eights,
polygons in pairs, labels that can be read back, or labels from a given list. What a model does
within that is left to it; in particular an answer may hold nothing, may begin with several `<s>`,
and where it is about a region may repeat the region's box, as the published models do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, get_args

import numpy as np

from florence_jax.constrained.answer_schema import AnswerSchema, Form
from florence_jax.constrained.byte_dfa import (
    FREE_TEXT,
    LABEL,
    OCR_LABEL,
    TextRule,
    byte_automaton,
    compose_with_tokenizer,
)
from florence_jax.constrained.token_dfa import FINISHED, DFABuilder, TokenAutomaton, TokenClasses
from florence_jax.processing.locations import BINS
from florence_jax.processing.tokenizer import FlorenceTokenizer
from florence_jax.processing.vocabulary import FLORENCE_TOKENS, SPECIAL_TOKENS

# Classes of tokens. Text follows, with as many classes as there are ways in which its tokens act.
_NEVER, _END, _BEGIN, _LOC, _SEP, _POLY, _CLOSE_POLY, _MARKUP, _TEXT = range(9)
_KIND_OF_MARKUP = {"<sep>": _SEP, "<poly>": _POLY, "</poly>": _CLOSE_POLY}

# After x0: y0 is free, x1 and y1 must not be below the tokens two before them.
_REST_OF_BOX = [False, True, True]
_REST_OF_QUAD = [False] * 7
# Three points. With two, COCO's tools take the four numbers for a box.
_LEAST_POLYGON = [False] * 6


class AnswerGrammars:
    """The answer forms as automata over one tokenizer's tokens."""

    def __init__(self, tokenizer: FlorenceTokenizer, vocab_size: int):
        """Sorts the vocabulary and draws the forms without given labels, in about a second.

        Args:
            tokenizer: names the tokens.
            vocab_size: V, the model's. Rows of its table past the tokenizer's are never allowed.

        Raises:
            ValueError: the tokenizer has tokens that the model has not.
        """
        if tokenizer.vocab_size > vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {vocab_size}; "
                "load the tokenizer that belongs to the model"
            )
        self._tokenizer = tokenizer
        kinds, self._text = _sort_vocabulary(tokenizer, vocab_size)
        self._location_of_token = np.full(vocab_size, -1, np.int32)
        self._location_of_token[[tokenizer.loc_id(bin) for bin in range(BINS)]] = np.arange(BINS)
        self._sketch = DFABuilder(kinds=kinds, end=_END)
        self._starts = {
            AnswerSchema(form): self._build(self._sketch, form, None) for form in get_args(Form)
        }

    def automaton(
        self, forms: Iterable[AnswerSchema] = ()
    ) -> tuple[TokenAutomaton, dict[AnswerSchema, int]]:
        """One automaton for `forms` and all forms without given labels, and where each begins.

        Raises:
            ValueError: more labels than a table can hold.
        """
        spelled = {
            form: [ids[1:-1] for ids in self._tokenizer.encode(form.labels)]
            for form in forms
            if form.labels is not None
        }
        tokens = {token for words in spelled.values() for word in words for token in word}
        sketch = self._sketch.split(sorted(tokens))
        starts = dict(self._starts)
        for form, words in spelled.items():
            starts[form] = self._build(sketch, form.form, words)
        return sketch.automaton(self._location_of_token, self._tokenizer.eos_id), starts

    def _build(self, sketch: DFABuilder, form: Form, words: list[list[int]] | None) -> int:
        """Adds `form` to `sketch`; the state in which it begins."""

        def text(rule: TextRule) -> _Part:
            if words is not None:
                return _add_words(sketch, words)
            return _add_text(sketch, self._text[rule], byte_automaton(rule).complete)

        if form == "boxes":
            return _draw_boxes(sketch)
        if form == "polygons":
            return _draw_polygons(sketch)
        if form == "labelled boxes":
            return _draw_labelled(sketch, text(LABEL), _REST_OF_BOX, several=True)
        if form == "labelled quads":
            return _draw_labelled(sketch, text(OCR_LABEL), _REST_OF_QUAD, several=False)
        if form == "labelled boxes or polygons":
            return _draw_boxes_or_polygons(sketch, *(text(LABEL) for _ in range(3)))
        markup = form == "anything" and words is None
        return _draw_text(sketch, text(FREE_TEXT), region=form == "text and region", markup=markup)


class _Part(NamedTuple):
    """A stretch of text in a sketch: where it begins, and the states in which it may end."""

    first: int
    complete: list[int]


def _draw_text(sketch: DFABuilder, text: _Part, *, region: bool, markup: bool) -> int:
    for state in text.complete:
        sketch.link(state, {_END: FINISHED})
        if markup:
            kinds = (_LOC, _SEP, _POLY, _CLOSE_POLY, _MARKUP)
            sketch.link(state, dict.fromkeys(kinds, text.first))
    if region:
        last = sketch.add()
        sketch.link(last, {_END: FINISHED})
        box = sketch.chain(_LOC, _REST_OF_BOX, last)
        for state in text.complete:
            sketch.link(state, {_LOC: box})
    return _begin(sketch, text.first)


def _draw_labelled(sketch: DFABuilder, label: _Part, rest: list[bool], *, several: bool) -> int:
    """Labels, each with a shape of 1 + len(rest) locations, or with several such."""
    after = sketch.add(like=label.first)
    shape = sketch.chain(_LOC, rest, after)
    sketch.link(after, {_END: FINISHED} | ({_LOC: shape} if several else {}))
    for state in label.complete:
        sketch.link(state, {_LOC: shape})
    return _begin(sketch, label.first, empty=True)


def _draw_boxes(sketch: DFABuilder) -> int:
    after = sketch.add()
    sketch.link(after, {_END: FINISHED, _LOC: sketch.chain(_LOC, _REST_OF_BOX, after)})
    return _begin(sketch, after)


def _draw_polygons(sketch: DFABuilder) -> int:
    """The polygons of one instance, or instances that `<poly>` encloses."""
    bare = _add_instance(sketch, {_END: FINISHED})
    after = sketch.add()
    instance = _add_instance(sketch, {_CLOSE_POLY: after})
    sketch.link(after, {_END: FINISHED, _POLY: instance})
    start = _begin(sketch, bare, empty=True)
    sketch.link(start, {_POLY: instance})
    return start


def _draw_boxes_or_polygons(
    sketch: DFABuilder, either: _Part, boxed: _Part, outlined: _Part
) -> int:
    """The first label's shape decides which all have: a `<poly>` makes polygons of boxes too."""
    after_box = sketch.add(like=boxed.first)
    box = sketch.chain(_LOC, _REST_OF_BOX, after_box)
    sketch.link(after_box, {_END: FINISHED, _LOC: box})
    after_instance = sketch.add(like=outlined.first)
    instance = _add_instance(sketch, {_CLOSE_POLY: after_instance})
    sketch.link(after_instance, {_END: FINISHED, _POLY: instance})
    for states, shapes in (
        (either.complete, {_LOC: box, _POLY: instance}),
        (boxed.complete, {_LOC: box}),
        (outlined.complete, {_POLY: instance}),
    ):
        for state in states:
            sketch.link(state, shapes)
    return _begin(sketch, either.first, empty=True)


def _begin(sketch: DFABuilder, first: int, *, empty: bool = False) -> int:
    """The start of an answer: any number of `<s>`, then what `first` allows, or with `empty` no
    more."""
    start = sketch.add(like=first)
    sketch.link(start, {_BEGIN: start} | ({_END: FINISHED} if empty else {}))
    return start


def _add_instance(sketch: DFABuilder, close: dict[int, int]) -> int:
    """Polygons with `<sep>` between them, then `close`; the state before the first coordinate."""
    whole = sketch.add()
    polygon = sketch.chain(_LOC, _LEAST_POLYGON, whole)
    sketch.link(whole, {_LOC: sketch.chain(_LOC, [False], whole), _SEP: polygon} | close)
    return polygon


def _add_text(sketch: DFABuilder, table: np.ndarray, complete: np.ndarray) -> _Part:
    """A text automaton, lifted: see `compose_with_tokenizer`."""
    states = [sketch.add() for _ in table]
    for state, row in zip(states, table, strict=True):
        sketch.link(state, {_TEXT + int(k): states[row[k]] for k in np.flatnonzero(row >= 0)})
    return _Part(states[0], [states[index] for index in np.flatnonzero(complete)])


def _add_words(sketch: DFABuilder, words: list[list[int]]) -> _Part:
    """One of `words`, token by token: a trie, whose nodes may be words and go on to longer ones."""
    nodes: dict[tuple[int, ...], int] = {(): sketch.add()}
    for word in words:
        for length in range(1, len(word) + 1):
            path = tuple(word[:length])
            if path not in nodes:
                nodes[path] = sketch.add()
                kind = int(sketch.kinds.class_of_token[path[-1]])
                sketch.link(nodes[path[:-1]], {kind: nodes[path]})
    return _Part(nodes[()], [nodes[tuple(word)] for word in words])


def _sort_vocabulary(
    tokenizer: FlorenceTokenizer, vocab_size: int
) -> tuple[TokenClasses, dict[TextRule, np.ndarray]]:
    """The classes of all tokens, and each text class's transitions under each rule.

    See `compose_with_tokenizer`.
    """
    # Of these, answers hold Florence-2's alone; other added tokens are text.
    names = (*SPECIAL_TOKENS, "<mask>", "<image>", *FLORENCE_TOKENS)
    markup = {name: tokenizer.token_id(name) for name in names}
    taken = set(markup.values())
    spelled = {i: tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size) if i not in taken}
    texts = [index for index, written in spelled.items() if written]
    rules = (FREE_TEXT, OCR_LABEL, LABEL)
    tables = [
        compose_with_tokenizer(byte_automaton(rule), [spelled[index] for index in texts])
        for rule in rules
    ]
    number_of: dict[bytes, int] = {}
    columns = np.ascontiguousarray(np.vstack(tables).T)
    kinds = np.array([number_of.setdefault(c.tobytes(), len(number_of)) for c in columns])
    _, example = np.unique(kinds, return_index=True)

    classes = np.full(vocab_size, _NEVER, np.int32)
    classes[texts] = _TEXT + kinds
    for name in FLORENCE_TOKENS:
        kind = _LOC if name.startswith("<loc_") else _KIND_OF_MARKUP.get(name, _MARKUP)
        classes[markup[name]] = kind
    classes[tokenizer.bos_id], classes[tokenizer.eos_id] = _BEGIN, _END
    lifted = {rule: table[:, example] for rule, table in zip(rules, tables, strict=True)}
    return TokenClasses(classes, _TEXT + len(number_of)), lifted
