"""Each filter against cases written by hand, and what holds for any input."""

import argparse
import dataclasses
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florence_jax.annotation.boxes import overlaps
from florence_jax.annotation.filters import (
    box_rejection_reason,
    contradicts,
    filter_lines,
    filter_phrases,
    filter_regions,
    join_descriptions,
    text_rejection_reason,
    unmatched_boxes,
    valid_polygons,
)
from florence_jax.annotation.noun_phrase_extractors import RuleBasedExtractor
from florence_jax.annotation.schema import LEVELS, OCRLine, Phrase, Region, Text
from florence_jax.annotation.settings import AnnotateSettings, FilterSettings
from florence_jax.cli.annotate_options import add_options, annotate_settings
from tests.annotation.generated import SIZE, lines, regions

SETTINGS = FilterSettings()
extract = RuleBasedExtractor()


def region(box, score=0.9, label="dog", label_score=0.9, **more):
    return Region(box=box, score=score, label=label, label_score=label_score, **more)


@pytest.mark.parametrize(
    ("text", "score", "level", "fault"),
    [
        ("A brown dog.", 0.5, "brief", None),
        ("  ", 0.5, "brief", "empty"),
        ("A brown dog.", 0.05, "brief", "score"),
        ("A dog.", 0.5, "brief", "too simple"),
        ("A dog, a cat, a cow, a pig, a hen, a car, a bus, a cup and a hat.", 0.5, "brief",
         "too many objects"),
        ("A dog, a cat, a cow, a pig, a hen, a car, a bus, a cup and a red hat.", 0.5, "detailed",
         None),
    ],
)  # fmt: skip
def test_a_text_goes_for_one_reason(text, score, level, fault):
    found = text_rejection_reason(
        Text(level=level, text=text, score=score), extract(text), SETTINGS
    )
    assert found == fault


@pytest.mark.parametrize(
    ("label", "description", "agreement", "against"),
    [
        ("heart", "a small pink Heart", 1.0, False),
        ("heart", "a small pink square", 1.0, True),
        ("heart", "a small pink square", 0.0, False),
        ("traffic light", "a red light", 0.5, False),
        ("traffic light", "a red light", 1.0, True),
        ("heart", None, 1.0, False),
        (None, "a heart", 1.0, False),
    ],
)
def test_a_label_and_a_description_that_contradict(label, description, agreement, against):
    one = dataclasses.replace(region((0, 0, 9, 9), label=label), description=description)
    assert contradicts(one, FilterSettings(agreement=agreement)) == against


def test_what_nothing_kept_covers_is_counted_once():
    kept = [(0, 0, 10, 10)]
    found = [(0, 0, 10, 9), (50, 50, 60, 60), (50, 50, 60, 59), (80, 80, 90, 90)]
    assert unmatched_boxes(found, kept, 0.7) == 2
    assert unmatched_boxes(found[:1], [], 0.7) == 1
    assert unmatched_boxes([], kept, 0.7) == 0


def test_each_level_of_texts_has_its_own_least_score():
    chosen = FilterSettings(text_score=(0.2, 0.6, 0.8))
    for level, least in zip(LEVELS, chosen.text_score, strict=True):
        for score, fault in ((least, None), (least - 0.01, "score")):
            text = Text(level=level, text="A brown dog.", score=score)
            assert text_rejection_reason(text, extract(text.text), chosen) == fault


def test_one_number_on_the_command_line_is_of_every_level():
    parser = argparse.ArgumentParser()
    add_options(parser)
    thresholds = ("text_score=0.5", "most_objects=1,2,3")
    words = [word for one in thresholds for word in ("--threshold", one)]
    chosen = annotate_settings(parser.parse_args(["x", "--output", "out", *words]))
    assert chosen.filters.text_score == (0.5, 0.5, 0.5)
    assert chosen.filters.most_objects == (1, 2, 3)


@pytest.mark.parametrize(
    ("box", "score", "fault"),
    [
        ((10, 10, 200, 200), 0.9, None),
        ((10, 10, 10, 200), 0.9, "degenerate"),
        ((200, 10, 10, 200), 0.9, "degenerate"),
        ((10, 10, 13, 200), 0.9, "tiny"),  # 5 bins of 640 pixels are 3.2
        ((10, 10, 200, 12.3), 0.9, "tiny"),  # and of 480, 2.4
        ((10, 10, 13.3, 12.5), 0.9, None),
        ((10, 10, 200, 200), 0.09, "score"),
    ],
)
def test_a_box_goes_for_one_reason(box, score, fault):
    assert box_rejection_reason(box, score, SIZE, SETTINGS) == fault


def test_regions_that_are_one_thing():
    box, nearly, beside = (100, 100, 200, 200), (110, 100, 210, 200), (300, 100, 400, 200)
    found = [
        region(box, score=0.8),
        region(nearly, score=0.9, label="Dog"),  # case does not make another label
        region(beside, score=0.5),
        region(box, score=0.7, label="cat"),
        region(beside, label=""),
        region(beside, label_score=0.1),
        region(beside, label=None, description="a wall", description_score=0.2),
    ]
    rejected = Counter()
    kept = filter_regions(found, SIZE, SETTINGS, rejected)
    assert kept == [found[1], found[2], found[3]]
    assert +rejected == {"regions: overlap": 1, "regions: label": 1, "regions: label score": 2}
    # The very same box under another name is not kept beside the surer one.
    rejected = Counter()
    assert filter_regions([found[0], found[3]], SIZE, SETTINGS, rejected) == [found[0]]
    assert +rejected == {"regions: overlap of another label": 1}


def test_lines():
    quad = (10, 10, 60, 10, 60, 30, 10, 30)
    flat = (10, 10, 60, 10, 60, 10, 10, 10)
    found = [
        OCRLine(quad=quad, text="STOP", score=0.9),
        OCRLine(quad=quad, text="STOP", score=0.8),
        OCRLine(quad=quad, text="SHOP", score=0.8),
        OCRLine(quad=flat, text="EXIT", score=0.8),
        OCRLine(quad=quad, text=" ", score=0.8),
        OCRLine(quad=quad, text="doubt", score=0.8),
    ]
    rejected = Counter()
    kept = filter_lines(found, [0.9, 0.9, 0.9, 0.9, 0.9, 0.1], SIZE, SETTINGS, rejected)
    assert kept == [found[0], found[2]]
    assert +rejected == {
        "ocr: overlap": 1,
        "ocr: degenerate": 1,
        "ocr: empty": 1,
        "ocr: text score": 1,
    }


def test_a_phrase_that_is_said_twice_is_grounded_once():
    def phrase(wording, start, box, score=0.9):
        return Phrase(
            text=0, start=start, end=start + len(wording), phrase=wording, box=box, score=score
        )

    one, other = (100, 100, 200, 200), (300, 100, 400, 200)
    found = [
        phrase("A dog", 0, one),
        phrase("the dog", 20, one, score=0.5),
        phrase("the dog", 20, other),  # another dog
        phrase("a cat", 40, one),  # another thing at the same place is the model's business
        phrase("a cat", 40, (101, 100, 201, 200), score=0.3),
    ]
    rejected = Counter()
    kept = filter_phrases(found, SIZE, SETTINGS, rejected)
    assert kept == [found[0], found[2], found[3]]
    assert +rejected == {"phrases: duplicate": 1, "phrases: overlap": 1}


def test_polygons():
    rejected = Counter()
    box, square = (10, 10, 20, 20), (10, 10, 20, 10, 20, 20, 10, 20)
    assert valid_polygons([square, (10, 10, 20, 20), (1, 1, 2, 2, 3, 3)], box, rejected, "x") == (
        square,
    )
    assert valid_polygons([square], (15, 15, 40, 40), rejected, "x") == ()
    assert rejected == {"x: degenerate polygon": 2, "x: polygon off its box": 1}


def test_descriptions_join_the_box_that_they_fit_best():
    labelled = [region((0, 0, 100, 100)), region((5, 0, 105, 100), label="cat")]
    described = [
        region((6, 0, 106, 100), label=None, label_score=None, description="a black cat"),
        region((300, 0, 400, 100), label=None, label_score=None, description="a wall"),
    ]
    joined = join_descriptions(labelled, described, SETTINGS)
    assert [(one.label, one.description) for one in joined] == [
        ("dog", None),
        ("cat", "a black cat"),
        (None, "a wall"),
    ]
    assert joined[1].box == labelled[1].box


@settings(max_examples=40)
@given(st.lists(regions, max_size=8), st.lists(lines, max_size=5), st.sampled_from((0.0, 0.5)))
def test_filters_only_take_away_and_count_what_they_take(found, written, least):
    chosen = FilterSettings(box_score=least, label_score=least, line_score=least)
    rejected = Counter()
    kept = filter_regions(found, SIZE, chosen, rejected)
    assert len(kept) + rejected.total() == len(found)
    assert all(one in found for one in kept)
    assert all(one.score >= least and (one.label_score or 0) >= least for one in kept)
    shared = overlaps([one.box for one in kept], [one.box for one in kept])
    for number, one in enumerate(kept):
        for other in range(number):
            same = one.label == kept[other].label
            assert shared[number, other] < (chosen.overlap if same else chosen.overlap_any)
    assert filter_regions(kept, SIZE, chosen, Counter()) == kept
    rejected = Counter()
    kept_lines = filter_lines(written, [1.0] * len(written), SIZE, chosen, rejected)
    assert len(kept_lines) + rejected.total() == len(written)


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (FilterSettings, {"box_score": 1.5}, "box_score is 1.5, expected 0 to 1"),
        (FilterSettings, {"overlap": 0.0}, "overlap is 0.0, expected more than 0 to 1"),
        (FilterSettings, {"most_objects": (1, 2)}, "most_objects is .* expected three numbers"),
        (FilterSettings, {"most_objects": (1, 0, 2)}, "expected at least 1 of each"),
        (FilterSettings, {"text_score": (0.1, 0.1)}, "text_score is .* expected three numbers"),
        (FilterSettings, {"text_score": (0.1, 1.1, 0.1)}, "text_score is 1.1, expected 0 to 1"),
        (AnnotateSettings, {"levels": ("short",)}, "expected some of"),
        (AnnotateSettings, {"levels": (), "regions": False, "ocr": False}, "nothing is asked"),
        (AnnotateSettings, {"proposals": True, "complete": False}, "leave out --no-completion"),
        (AnnotateSettings, {"proposals": True, "regions": False}, "let --only have regions"),
    ],
)
def test_settings_that_make_no_sense(kind, wrong, message):
    with pytest.raises(ValueError, match=message):
        kind(**wrong)
