"""Grammars of the tasks' answers, as finite automata over a tokenizer's tokens.

They allow what the parser reads whole: boxes in fours with x0 <= x1 and y0 <= y1, quads in eights,
polygons in pairs, labels that can be read back, or labels from a given list. What a model does
within that is left to it; in particular an answer may hold nothing, may begin with several `<s>`,
and where it is about a region may repeat the region's box, as the published models do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, get_args

import numpy as np

from florence_jax.constrained.answer_schema import AnswerKind, AnswerSchema
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

# Classes of tokens; the classes of text follow, one for each way in which its tokens act.
_NEVER, _END, _BEGIN, _LOC, _SEP, _POLY, _CLOSE_POLY, _MARKUP, _TEXT = range(9)
_KIND_OF_MARKUP = {"<sep>": _SEP, "<poly>": _POLY, "</poly>": _CLOSE_POLY}

# After x0: y0 is free, x1 and y1 must not be below the tokens two before them.
_REST_OF_BOX = [False, True, True]
_REST_OF_QUAD = [False] * 7
# Three points. With two, COCO's tools take the four numbers for a box.
_LEAST_POLYGON = [False] * 6


class AnswerGrammars:
    """The grammar of each kind of answer, compiled for one tokenizer."""

    def __init__(self, tokenizer: FlorenceTokenizer, vocab_size: int):
        """Sort the vocabulary and build the grammars without given labels, in about a second.

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
        classes, self._text = _sort_vocabulary(tokenizer, vocab_size)
        self._location_of_token = np.full(vocab_size, -1, np.int32)
        self._location_of_token[[tokenizer.loc_id(bin) for bin in range(BINS)]] = np.arange(BINS)
        self._builder = DFABuilder(classes=classes, end=_END)
        self._starts = {
            AnswerSchema(kind): self._build(self._builder, kind, None)
            for kind in get_args(AnswerKind)
        }

    def automaton(
        self, schemas: Iterable[AnswerSchema] = ()
    ) -> tuple[TokenAutomaton, dict[AnswerSchema, int]]:
        """One automaton that holds the grammars of `schemas` and all grammars without given labels.

        Raises:
            ValueError: more labels than a table can hold.
        """
        spelled = {
            schema: [ids[1:-1] for ids in self._tokenizer.encode(schema.labels)]
            for schema in schemas
            if schema.labels is not None
        }
        tokens = {token for words in spelled.values() for word in words for token in word}
        builder = self._builder.split(sorted(tokens))
        starts = dict(self._starts)
        for schema, words in spelled.items():
            starts[schema] = self._build(builder, schema.kind, words)
        return builder.automaton(self._location_of_token, self._tokenizer.eos_id), starts

    def _build(self, builder: DFABuilder, kind: AnswerKind, words: list[list[int]] | None) -> int:
        """Add the grammar of `kind`; returns its start state."""

        def text(rule: TextRule) -> _Part:
            if words is not None:
                return _add_words(builder, words)
            return _add_text(builder, self._text[rule], byte_automaton(rule).complete)

        if kind == "boxes":
            return _build_boxes(builder)
        if kind == "polygons":
            return _build_polygons(builder)
        if kind == "labelled boxes":
            return _build_labelled(builder, text(LABEL), _REST_OF_BOX, several=True)
        if kind == "labelled quads":
            return _build_labelled(builder, text(OCR_LABEL), _REST_OF_QUAD, several=False)
        if kind == "labelled boxes or polygons":
            return _build_boxes_or_polygons(builder, *(text(LABEL) for _ in range(3)))
        markup = kind == "anything" and words is None
        return _build_text(
            builder, text(FREE_TEXT), region=kind == "text and region", markup=markup
        )


class _Part(NamedTuple):
    """Text inside an automaton: its first state, and the states in which it may end."""

    first: int
    complete: list[int]


def _build_text(builder: DFABuilder, text: _Part, *, region: bool, markup: bool) -> int:
    for state in text.complete:
        builder.link(state, {_END: FINISHED})
        if markup:
            classes = (_LOC, _SEP, _POLY, _CLOSE_POLY, _MARKUP)
            builder.link(state, dict.fromkeys(classes, text.first))
    if region:
        last = builder.add()
        builder.link(last, {_END: FINISHED})
        box = builder.chain(_LOC, _REST_OF_BOX, last)
        for state in text.complete:
            builder.link(state, {_LOC: box})
    return _begin(builder, text.first)


def _build_labelled(builder: DFABuilder, label: _Part, rest: list[bool], *, several: bool) -> int:
    """Labels, each followed by one shape of 1 + len(rest) locations, or by several of them."""
    after = builder.add(like=label.first)
    shape = builder.chain(_LOC, rest, after)
    builder.link(after, {_END: FINISHED} | ({_LOC: shape} if several else {}))
    for state in label.complete:
        builder.link(state, {_LOC: shape})
    return _begin(builder, label.first, empty=True)


def _build_boxes(builder: DFABuilder) -> int:
    after = builder.add()
    builder.link(after, {_END: FINISHED, _LOC: builder.chain(_LOC, _REST_OF_BOX, after)})
    return _begin(builder, after)


def _build_polygons(builder: DFABuilder) -> int:
    """The polygons of one instance, or instances that `<poly>` encloses."""
    bare = _add_instance(builder, {_END: FINISHED})
    after = builder.add()
    instance = _add_instance(builder, {_CLOSE_POLY: after})
    builder.link(after, {_END: FINISHED, _POLY: instance})
    start = _begin(builder, bare, empty=True)
    builder.link(start, {_POLY: instance})
    return start


def _build_boxes_or_polygons(
    builder: DFABuilder, either: _Part, boxed: _Part, outlined: _Part
) -> int:
    """Boxes or polygons: the shape after the first label decides for all later ones."""
    after_box = builder.add(like=boxed.first)
    box = builder.chain(_LOC, _REST_OF_BOX, after_box)
    builder.link(after_box, {_END: FINISHED, _LOC: box})
    after_instance = builder.add(like=outlined.first)
    instance = _add_instance(builder, {_CLOSE_POLY: after_instance})
    builder.link(after_instance, {_END: FINISHED, _POLY: instance})
    for states, shapes in (
        (either.complete, {_LOC: box, _POLY: instance}),
        (boxed.complete, {_LOC: box}),
        (outlined.complete, {_POLY: instance}),
    ):
        for state in states:
            builder.link(state, shapes)
    return _begin(builder, either.first, empty=True)


def _begin(builder: DFABuilder, first: int, *, empty: bool = False) -> int:
    """The start state: any number of `<s>`, then what `first` allows; `empty` allows no more."""
    start = builder.add(like=first)
    builder.link(start, {_BEGIN: start} | ({_END: FINISHED} if empty else {}))
    return start


def _add_instance(builder: DFABuilder, close: dict[int, int]) -> int:
    """Polygons with `<sep>` between them, then `close`; the state before the first coordinate."""
    whole = builder.add()
    polygon = builder.chain(_LOC, _LEAST_POLYGON, whole)
    builder.link(whole, {_LOC: builder.chain(_LOC, [False], whole), _SEP: polygon} | close)
    return polygon


def _add_text(builder: DFABuilder, table: np.ndarray, complete: np.ndarray) -> _Part:
    """Add a byte automaton composed with the tokenizer, see `compose_with_tokenizer`."""
    states = [builder.add() for _ in table]
    for state, row in zip(states, table, strict=True):
        builder.link(state, {_TEXT + int(k): states[row[k]] for k in np.flatnonzero(row >= 0)})
    return _Part(states[0], [states[index] for index in np.flatnonzero(complete)])


def _add_words(builder: DFABuilder, words: list[list[int]]) -> _Part:
    """Add a trie of `words`, token by token; a word may be the beginning of a longer one."""
    nodes: dict[tuple[int, ...], int] = {(): builder.add()}
    for word in words:
        for length in range(1, len(word) + 1):
            path = tuple(word[:length])
            if path not in nodes:
                nodes[path] = builder.add()
                token_class = int(builder.classes.class_of_token[path[-1]])
                builder.link(nodes[path[:-1]], {token_class: nodes[path]})
    return _Part(nodes[()], [nodes[tuple(word)] for word in words])


def _sort_vocabulary(
    tokenizer: FlorenceTokenizer, vocab_size: int
) -> tuple[TokenClasses, dict[TextRule, np.ndarray]]:
    """The class of every token, and each text class's transitions under each rule.

    See `compose_with_tokenizer`.
    """
    # Answers hold only Florence-2's tokens among these; other added tokens are text.
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
    text_class = np.array([number_of.setdefault(c.tobytes(), len(number_of)) for c in columns])
    _, example = np.unique(text_class, return_index=True)

    classes = np.full(vocab_size, _NEVER, np.int32)
    classes[texts] = _TEXT + text_class
    for name in FLORENCE_TOKENS:
        kind = _LOC if name.startswith("<loc_") else _KIND_OF_MARKUP.get(name, _MARKUP)
        classes[markup[name]] = kind
    classes[tokenizer.bos_id], classes[tokenizer.eos_id] = _BEGIN, _END
    lifted = {rule: table[:, example] for rule, table in zip(rules, tables, strict=True)}
    return TokenClasses(classes, _TEXT + len(number_of)), lifted
