"""Noun phrases by rules, without a parser: closed word classes and the endings of participles.

The fallback if no spaCy model is installed. It is made for the plain English of captions: in the
sentences of `tests/annotation/test_noun_phrases.py` it finds the phrases that a reader would, but
it knows no grammar, and rare verbs stay in the phrase before them. The degree in the dependency
tree is estimated as the number of modifiers, plus one each for a preposition or verb directly
before and after the phrase.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from florence_jax.annotation.noun_phrases import Analysis, NounPhrase
from florence_jax.annotation.word_lists import (
    ADJECTIVES,
    AUXILIARIES,
    DETERMINERS,
    ED_NOUNS,
    ING_NOUNS,
    LINKS,
    LY_NOUNS,
    PRONOUNS,
    VERBS,
)

# A quotation is one word, as in: the word "STOP".
_TOKEN = re.compile(r"\"[^\"]*\"|[^\W\d_]+(?:['\u2019\-][^\W\d_]+)*|\d+(?:[.,:]\d+)*|[^\w\s]")

Tag = Literal["determiner", "word", "link", "verb", "stop"]


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    start: int
    end: int

    @property
    def word(self) -> str:
        return self.text.lower()


class RuleBasedExtractor:
    """Finds noun phrases by the rules of this module."""

    name = "rules 1"

    def __call__(self, text: str) -> Analysis:
        tokens = [_Token(found[0], *found.span()) for found in _TOKEN.finditer(text)]
        tags = list(_tags(tokens))
        phrases, complexity, attributes = [], 0, 0
        for first, last in _chunks(tokens, tags):
            modifiers = sum(tag == "word" for tag in tags[first:last])
            before = tags[first - 1] in ("link", "verb") if first else False
            after = tags[last + 1] in ("link", "verb") if last + 1 < len(tags) else False
            complexity = max(complexity, modifiers + before + after)
            attributes += modifiers
            start, end = tokens[first].start, tokens[last].end
            phrases.append(
                NounPhrase(start=start, end=end, head=tokens[last].word, text=text[start:end])
            )
        return Analysis(
            phrases=tuple(phrases),
            attributes=attributes,
            actions=sum(
                tag == "verb" and token.word not in AUXILIARIES
                for token, tag in zip(tokens, tags, strict=True)
            ),
            complexity=complexity,
        )


def _tags(tokens: list[_Token]) -> Iterator[Tag]:
    """The class of each token; that of a participle depends on the token before it."""
    before: Tag = "stop"
    auxiliary = False  # whether an auxiliary came last: "is painted" is no attribute
    for token in tokens:
        tag = _tag(token, before, auxiliary)
        auxiliary = token.word in AUXILIARIES or (auxiliary and token.word.endswith("ly"))
        before = tag
        yield tag


def _tag(token: _Token, before: Tag, auxiliary: bool) -> Tag:
    word = token.word
    if not (word[0].isalnum() or word[0] == '"'):
        return "stop"
    if word in DETERMINERS or word[0].isdigit():
        return "determiner"
    if word in LINKS:
        return "link"
    opens = before == "determiner"
    if word in AUXILIARIES or (word in VERBS and not opens):
        return "verb"
    if word.endswith("ing") and len(word) > 4 and word not in ING_NOUNS and not opens:
        return "verb"
    participle = word.endswith("ed") and len(word) > 3 and word not in ED_NOUNS
    if participle and (auxiliary or before == "word") and word not in ADJECTIVES:
        return "verb"
    if word.endswith("ly") and word not in LY_NOUNS:
        # "a brightly lit window": the phrase that was opened is still to come.
        return "determiner" if opens else "link"
    return "word"


def _chunks(tokens: list[_Token], tags: list[Tag]) -> Iterator[tuple[int, int]]:
    """First and last token of each phrase; its last token is its head."""
    place = 0
    while place < len(tokens):
        if tags[place] not in ("determiner", "word"):
            if tokens[place].word in PRONOUNS and tags[place] == "link":
                yield place, place
            place += 1
            continue
        first = place
        while place < len(tokens) and tags[place] == "determiner":
            place += 1
        while place < len(tokens) and _goes_on(tokens, tags, place):
            place += 1
        last = place - 1
        words = [token.word for token in tokens[first:place]]
        pointed = tags[first] == "determiner"
        if tags[last] == "determiner":
            # "this" and "two" alone stand for a thing only as pronouns do.
            if words[-1] in PRONOUNS and len(words) == 1 and words[-1] not in ("a", "an", "the"):
                yield first, last
        elif pointed or not all(word in ADJECTIVES for word in words):
            yield first, last


def _goes_on(tokens: list[_Token], tags: list[Tag], place: int) -> bool:
    if tags[place] == "word":
        return True
    # "a large, red ball": a comma between adjectives parts nothing.
    between = 0 < place < len(tokens) - 1 and tokens[place].text == ","
    return between and tokens[place - 1].word in ADJECTIVES and tags[place + 1] == "word"
