"""Noun phrases of captions: their types, and which of them can be grounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from florence_jax.annotation.word_lists import ABSTRACT_HEADS, DETERMINERS, PRONOUNS


@dataclass(frozen=True, kw_only=True)
class NounPhrase:
    """`text[start:end]`, and the noun that says what it is, in lower case."""

    start: int
    end: int
    head: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The noun phrases of a text, and how much it says about them.

    Attributes:
        phrases: noun phrases in order, pronouns among them.
        attributes: adjectives and other words that describe a noun.
        actions: verbs other than auxiliaries.
        complexity: the largest degree of a noun or a verb in the dependency tree, determiners,
            auxiliaries and punctuation left out.
    """

    phrases: tuple[NounPhrase, ...] = ()
    attributes: int = 0
    actions: int = 0
    complexity: int = 0

    @property
    def objects(self) -> int:
        """Number of different phrases, determiners aside, that name a visible thing."""
        named = (phrase for phrase in self.phrases if reason_against(phrase) is None)
        return len({_without_determiner(phrase.text) for phrase in named})


class NounPhraseExtractor(Protocol):
    """Finds the noun phrases of a text; safe to call from several threads."""

    @property
    def name(self) -> str:
        """The method and its version, on which the results depend."""
        ...

    def __call__(self, text: str) -> Analysis: ...


def reason_against(phrase: NounPhrase) -> str | None:
    """Why a phrase cannot be grounded: "pronoun", "abstract", or None if it can."""
    if phrase.text.casefold() in PRONOUNS or phrase.head in PRONOUNS:
        return "pronoun"
    return "abstract" if phrase.head in ABSTRACT_HEADS else None


def find_phrase(wording: str, text: str, phrases: Sequence[NounPhrase]) -> tuple[int, int] | str:
    """The place of a phrase, as a model wrote it, in the text that it was asked about.

    Args:
        wording: the phrase as the model wrote it; case does not matter.
        text: the text.
        phrases: the noun phrases of the text.

    Returns:
        (start, end) in `text`, the first of several places; or why the phrase cannot be grounded:
        "not in the text", "no noun phrase", "pronoun" or "abstract".
    """
    if wording.casefold() in PRONOUNS:
        return "pronoun"
    place = _place(wording, text)
    if place is None:
        return "not in the text"
    # A wording may hold several phrases ("a man and a woman"): one that can be grounded will do.
    inside = [phrase for phrase in phrases if phrase.start < place[1] and place[0] < phrase.end]
    if not inside:
        return "no noun phrase"
    reasons = [reason_against(phrase) for phrase in inside]
    return place if None in reasons else next(reason for reason in reasons if reason)


def _without_determiner(wording: str) -> str:
    first, _, rest = wording.lower().partition(" ")
    return rest if rest and first in DETERMINERS else wording.lower()


def _place(wording: str, text: str) -> tuple[int, int] | None:
    """The first place of the wording between word boundaries."""
    lowered, sought = text.lower(), wording.strip().lower()
    # Lower case may be longer than the original; then only an exact match can be trusted.
    if len(lowered) != len(text):
        lowered, sought = text, wording.strip()
    start = lowered.find(sought) if sought else -1
    while start >= 0:
        end = start + len(sought)
        before, after = lowered[start - 1 : start], lowered[end : end + 1]
        if not (_joins(before, sought[0]) or _joins(sought[-1], after)):
            return start, end
        start = lowered.find(sought, start + 1)
    return None


def _joins(left: str, right: str) -> bool:
    return bool(left) and bool(right) and left.isalnum() and right.isalnum()
