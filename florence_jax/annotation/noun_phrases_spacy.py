"""Noun phrases by a spaCy model, and the choice between it and the rules."""

from __future__ import annotations

import importlib.util
import threading
from typing import Any

from florence_jax.annotation.noun_phrases import Analysis, NounPhrase, NounPhraseExtractor
from florence_jax.annotation.noun_phrases_rules import RuleBasedExtractor

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
