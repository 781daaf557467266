"""Find noun phrases: by a spaCy model, or by rules that need none."""

from __future__ import annotations

import importlib.util
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from florence_jax.annotation.noun_phrases import (
    ADJECTIVES,
    AUXILIARIES,
    DETERMINERS,
    ED_NOUNS,
    ING_NOUNS,
    LINKS,
    LY_NOUNS,
    PRONOUNS,
    VERBS,
    Analysis,
    NounPhrase,
    NounPhraseExtractor,
)

# The models that "auto" looks for; the small one is fast, and captions are simple sentences.
USUAL_MODELS = ("en_core_web_sm", "en_core_web_md", "en_core_web_lg")

_NOUNS, _VERBS = {"NOUN", "PROPN"}, {"VERB"}
_ATTRIBUTES = {"amod", "compound", "nummod"}
_NOT_COUNTED = {"det", "punct", "aux", "auxpass", "case"}


def find_extractor(name: str = "auto") -> NounPhraseExtractor:
    """The noun phrase extractor of a name.

    Args:
        name: "rules"; a spaCy model's name or directory; or "auto", the first of `USUAL_MODELS`
            that is installed, else the rules.

    Raises:
        ValueError: spaCy or the model is not installed.
    """
    if name == "auto":
        name = next((one for one in USUAL_MODELS if _is_installed(one)), "rules")
    return RuleBasedExtractor() if name == "rules" else SpacyExtractor(name)


class SpacyExtractor:
    """Finds noun phrases by a spaCy model with a parser."""

    def __init__(self, model: str) -> None:
        """
        Raises:
            ValueError: spaCy or the model is not installed, or parses no dependencies.
        """
        try:
            import spacy  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError(
                f"noun phrases by {model!r} need spaCy: pip install spacy, or choose the rules "
                "(--analyser rules)"
            ) from None
        try:
            self._parse = spacy.load(model, exclude=["ner", "lemmatizer", "textcat"])
        except OSError as error:
            raise ValueError(
                f"spaCy has no model {model!r} ({error}): python -m spacy download {model}, or "
                "choose the rules (--analyser rules)"
            ) from None
        if "parser" not in self._parse.pipe_names:
            raise ValueError(f"the spaCy model {model!r} has no parser: choose one that has")
        meta = self._parse.meta
        self.name = f"spacy {meta['lang']}_{meta['name']} {meta['version']}"
        self._lock = threading.Lock()

    def __call__(self, text: str) -> Analysis:
        # One at a time: a pipeline's vocabulary grows as it reads.
        with self._lock:
            return analysis_of(self._parse(text))


def analysis_of(document: Any) -> Analysis:
    """The analysis of a `spacy.tokens.Doc` with parts of speech and a dependency tree."""
    phrases = tuple(
        NounPhrase(
            start=chunk.start_char,
            end=chunk.end_char,
            head=chunk.root.text.lower(),
            text=chunk.text,
        )
        for chunk in document.noun_chunks
    )
    degrees = [_degree(token) for token in document if token.pos_ in _NOUNS | _VERBS]
    return Analysis(
        phrases=phrases,
        attributes=sum(token.dep_ in _ATTRIBUTES for token in document),
        actions=sum(token.pos_ in _VERBS for token in document),
        complexity=max(degrees, default=0),
    )


def _degree(token: Any) -> int:
    """The degree of the token in the tree, determiners, auxiliaries and punctuation aside."""
    children = sum(child.dep_ not in _NOT_COUNTED for child in token.children)
    return children + (token.head.i != token.i)


def _is_installed(model: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("spacy", model))


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
