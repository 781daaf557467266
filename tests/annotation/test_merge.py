"""Merging: cases written by hand, and the laws that hold for any annotations."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florence_jax.annotation.merge import merge, merge_sets
from florence_jax.annotation.schema import AnnotationError, Region, Text, from_row, to_row
from tests.annotation.generated import annotations
from tests.annotation.written import EXAMPLE

laws = settings(max_examples=25)
fusions = pytest.mark.parametrize("fusion", ["nms", "average"])
several = st.lists(annotations(), min_size=1, max_size=3)
captions = st.sampled_from(("best", "all"))


@fusions
@laws
@given(found=several, captions=captions, data=st.data())
def test_the_order_does_not_matter(fusion, found, captions, data):
    merged = merge(found, fusion=fusion, captions=captions)
    shuffled = []
    for one in data.draw(st.permutations(found)):
        parts = {
            name: tuple(data.draw(st.permutations(getattr(one, name))))
            for name in ("regions", "ocr", "phrases")
        }
        shuffled.append(dataclasses.replace(one, **parts))
    assert merge(shuffled, fusion=fusion, captions=captions) == merged


@fusions
@laws
@given(found=several, captions=captions)
def test_merging_the_result_again_changes_nothing(fusion, found, captions):
    merged = merge(found, fusion=fusion, captions=captions)
    assert merge([merged], fusion=fusion, captions=captions) == merged
    assert from_row(to_row(merged)) == merged


@laws
@given(found=several, captions=captions)
def test_what_it_was_made_of_adds_nothing(found, captions):
    merged = merge(found, captions=captions)
    assert merge([merged, *found], captions=captions) == merged


@laws
@given(found=several)
def test_twice_the_same_is_once(found):
    assert merge([*found, *found]) == merge(found)


def region(box, score, **more):
    return Region(box=box, score=score, **({"label": "dog", "label_score": 0.9} | more))


def with_regions(*regions):
    return dataclasses.replace(EXAMPLE, regions=regions, phrases=(), rejected={})


ONE, NEARLY, OTHER = (
    (100.0, 100.0, 200.0, 200.0),
    (110.0, 100.0, 210.0, 200.0),
    (0.0, 0.0, 9.0, 9.0),
)


def test_the_surest_box_stays_with_the_description_of_the_other():
    a = with_regions(region(ONE, 0.8), region(OTHER, 0.3))
    b = with_regions(region(NEARLY, 0.6, description="a dog", description_score=0.5))
    assert merge([a, b]).regions == (
        region(OTHER, 0.3),
        region(ONE, 0.8, description="a dog", description_score=0.5),
    )


def test_the_mean_box_by_score_and_the_share_that_found_it():
    a = with_regions(region(ONE, 0.6), region(OTHER, 0.3))
    b = with_regions(region(NEARLY, 0.2))
    found = merge([a, b], fusion="average").regions
    # x: (0.6 * 100 + 0.2 * 110) / 0.8; the score: (0.6 + 0.2) / 2, and 0.3 of one of two.
    assert found == (region(OTHER, 0.15), region((102.5, 100.0, 202.5, 200.0), 0.4))


def test_labels_part_boxes_and_case_does_not():
    a = with_regions(region(ONE, 0.6), region(ONE, 0.5, label="cat"))
    b = with_regions(region(ONE, 0.4, label="DOG"))
    assert [one.label for one in merge([a, b]).regions] == ["dog", "cat"]


def test_the_best_caption_keeps_its_phrases_and_equal_ones_share_theirs():
    worse = Text(level="brief", text="A cat.", score=0.2)
    b = dataclasses.replace(EXAMPLE, texts=(worse,), phrases=())
    c = dataclasses.replace(
        EXAMPLE, phrases=(dataclasses.replace(EXAMPLE.phrases[1], box=OTHER, score=0.5),)
    )
    best = merge([EXAMPLE, b, c])
    assert best.texts == EXAMPLE.texts
    assert [(one.phrase, one.box == OTHER) for one in best.phrases] == [
        ("A dog", False),
        ("a ball", True),
        ("a ball", False),
    ]
    everything = merge([EXAMPLE, b, c], captions="all")
    assert everything.texts == (EXAMPLE.texts[0], worse, EXAMPLE.texts[1])
    assert {one.text for one in everything.phrases} == {0}


def test_sets_are_joined_by_id():
    other = dataclasses.replace(EXAMPLE, id="b.png", image="b.png")
    merged = merge_sets([[other, EXAMPLE], [EXAMPLE]])
    assert [one.id for one in merged] == ["a.png", "b.png"]
    # Found by one annotator of two, whether or not the other saw the image.
    halved = merge_sets([[other], [EXAMPLE]], fusion="average")
    assert [one.regions[0].score for one in halved] == [0.35, 0.35]
    with pytest.raises(AnnotationError, match=r"a\.png is annotated twice"):
        merge_sets([[EXAMPLE, EXAMPLE]])
    with pytest.raises(AnnotationError, match="are not one image"):
        merge_sets([[EXAMPLE], [dataclasses.replace(EXAMPLE, width=641)]])
