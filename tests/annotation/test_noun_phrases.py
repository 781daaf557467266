"""Noun phrases as a reader finds them, by rules and from a dependency tree."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florence_jax.annotation.noun_phrase_extractors import (
    RuleBasedExtractor,
    analysis_of,
    find_extractor,
)
from florence_jax.annotation.noun_phrases import NounPhrase, find_phrase, reason_against

extract = RuleBasedExtractor()
PHRASES = {
    "A green car parked in front of a yellow building.": [
        "A green car",
        "front",
        "a yellow building",
    ],
    "The image shows a vintage Volkswagen Beetle car parked on a cobblestone street.": [
        "The image",
        "a vintage Volkswagen Beetle car",
        "a cobblestone street",
    ],
    "The car is painted in a bright turquoise color and has a white stripe along the side.": [
        "The car",
        "a bright turquoise color",
        "a white stripe",
        "the side",
    ],
    "A man riding a horse on the beach": ["A man", "a horse", "the beach"],
    "Two dogs play with a large, red ball.": ["Two dogs", "a large, red ball"],
    "It is facing towards the right side.": ["It", "the right side"],
    "a cat sitting on a brightly lit window sill": ["a cat", "a brightly lit window sill"],
    "Three men wearing hard hats stand near a parked truck.": [
        "Three men",
        "hard hats",
        "a parked truck",
    ],
    'A red circle, a star and the word "CAT".': ["A red circle", "a star", 'the word "CAT"'],
    "There are trees and buildings in the background.": ["trees", "buildings", "the background"],
    "They are happy.": ["They"],
    "": [],
    "?! ...": [],
}  # fmt: skip


@pytest.mark.parametrize("text", PHRASES)
def test_the_phrases_of_a_caption(text):
    found = extract(text).phrases
    assert [phrase.text for phrase in found] == PHRASES[text]


@settings(max_examples=60)
@given(st.text(max_size=80) | st.lists(st.sampled_from(
    ("the", "red", "dog", "riding", ",", ".", "a", "is", "quickly", "it", "two", '"X Y"', "çà")
), max_size=12).map(" ".join))  # fmt: skip
def test_phrases_stand_where_they_say_and_apart(text):
    found = extract(text).phrases
    assert all(text[phrase.start : phrase.end] == phrase.text for phrase in found)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    assert all(phrase.text.lower().endswith(phrase.head) for phrase in found)


@pytest.mark.parametrize(
    ("text", "objects", "actions", "complexity"),
    [
        ("A dog.", 1, 0, 0),
        ("A brown dog.", 1, 0, 1),
        ("A dog runs.", 1, 1, 1),
        ("A dog on grass.", 2, 0, 1),
        ("A small brown dog chasing a ball.", 2, 1, 3),
        ("A dog and the dog.", 1, 0, 1),  # named twice, one object
        ("The atmosphere gives a sense of joy.", 0, 1, 2),
    ],
)
def test_how_much_a_text_says(text, objects, actions, complexity):
    found = extract(text)
    assert (found.objects, found.actions, found.complexity) == (objects, actions, complexity)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("it", "pronoun"),
        ("They", "pronoun"),
        ("a sense", "abstract"),
        ("the background", "abstract"),
        ("the photo", "abstract"),
        ("a dog", None),
        ("the word", None),
    ],
)
def test_what_is_not_grounded(text, reason):
    phrase = NounPhrase(start=0, end=len(text), head=text.lower().split()[-1], text=text)
    assert reason_against(phrase) == reason


class TestFindPhrase:
    TEXT = "A dog sees the dog. It has a sense of joy and a red ball."

    @pytest.mark.parametrize(
        ("wording", "found"),
        [
            ("A dog", (0, 5)),
            ("a DOG", (0, 5)),
            ("dog", (2, 5)),
            ("a red ball", (46, 56)),
            ("a sense of joy and a red ball", (27, 56)),  # one of them can be seen
            ("ed ball", "not in the text"),
            ("a cat", "not in the text"),
            ("", "not in the text"),
            ("sees", "no noun phrase"),
            ("it", "pronoun"),
            ("a sense of joy", "abstract"),
        ],
    )
    def test_where_or_why_not(self, wording, found):
        assert find_phrase(wording, self.TEXT, extract(self.TEXT).phrases) == found


def test_a_dependency_tree_gives_phrases_and_degrees():
    """A tree written by hand: no model is needed to read one."""
    pytest.importorskip("spacy", reason="needs the extra `annotate`: pip install spacy")
    from spacy.lang.en import English
    from spacy.tokens import Doc

    words = ["A", "brown", "dog", "is", "chasing", "a", "ball", "."]
    document = Doc(
        English().vocab,  # which knows what a noun chunk of English is
        words=words,
        spaces=[True] * 6 + [False] * 2,
        pos=["DET", "ADJ", "NOUN", "AUX", "VERB", "DET", "NOUN", "PUNCT"],
        heads=[2, 2, 4, 4, 4, 6, 4, 4],
        deps=["det", "amod", "nsubj", "aux", "ROOT", "det", "dobj", "punct"],
    )
    found = analysis_of(document)
    assert [phrase.text for phrase in found.phrases] == ["A brown dog", "a ball"]
    assert [phrase.head for phrase in found.phrases] == ["dog", "ball"]
    # The verb has its subject and its object; "brown" and the verb hang on the dog.
    assert (found.attributes, found.actions, found.complexity) == (1, 1, 2)


def test_a_model_that_is_not_there_is_named_with_the_remedy():
    assert find_extractor("rules").name == "rules 1"
    with pytest.raises(ValueError, match=r"en_core_web_none.*--analyser rules"):
        find_extractor("en_core_web_none")
