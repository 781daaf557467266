"""What one picture is asked, with answers written by hand: who is asked again, and what wins."""

import jax.numpy as jnp
import pytest

from florence_jax.annotation.noun_phrase_extractors import RuleBasedExtractor
from florence_jax.annotation.settings import AnnotateSettings, FilterSettings
from florence_jax.annotation.stages import Answer, ImageAnnotator
from florence_jax.inference.image_encoder import EncodedImage

BOX, OTHER = (10.0, 10.0, 60.0, 60.0), (70.0, 20.0, 90.0, 40.0)
FILTERS = FilterSettings(agreement=1.0, label_score=0.5, joined=0.5)


def boxes(*found):
    """(box, words) as a list of objects answers."""
    return Answer(
        value={
            "bboxes": [box for box, _ in found],
            "labels": [words for _, words in found],
            "scores": [0.9] * len(found),
            "label_scores": [0.8 if words else 0.0 for _, words in found],
        },
        score=0.8,
    )


def annotated(script, **settings):
    """The annotation where each task answers as `script` says, and every question asked.

    Args:
        script: by task an answer, or by (task, box).
    """
    picture = ImageAnnotator(
        id="a.png",
        image="a.png",
        encoded=EncodedImage(
            features=jnp.zeros((1, 1)), size=(100, 100), pixel_size=(64, 64), params=None
        ),
        size=(100, 100),
        settings=AnnotateSettings(levels=(), ocr=False, filters=FILTERS, **settings),
        extractor=RuleBasedExtractor(),
    )
    asked = []
    for stage in picture.stages():
        for question, read in stage():
            task, box = question.prompt, question.region
            asked.append((task, box))
            read(script[task] if task in script else script[task, box])
    return picture.annotation(), asked


@pytest.mark.parametrize(
    ("second", "score", "left"),
    [
        ("heart", 0.9, [("heart", None)]),
        ("square", 0.9, [("square", "a small pink square")]),
        ("moon", 0.9, []),
        ("square", 0.4, []),  # not sure enough to decide
        ("", 0.9, []),
    ],
)
def test_a_second_label_decides_between_label_and_description(second, score, left):
    found, asked = annotated(
        {
            "<OD>": boxes((BOX, "heart")),
            "<DENSE_REGION_CAPTION>": boxes((BOX, "a small pink square")),
            "<REGION_TO_CATEGORY>": Answer(value=f"{second}<loc_1><loc_2>", score=score),
        }
    )
    assert asked[2:] == [("<REGION_TO_CATEGORY>", BOX)]
    assert [(one.label, one.description) for one in found.regions] == left
    # What nobody could name is missed, and said to be.
    assert found.lost == ({} if left else {"regions": 1})
    assert found.rejected.get("regions: label against description", 0) == (0 if left else 1)


def test_who_agrees_is_not_asked_again():
    _, asked = annotated(
        {
            "<OD>": boxes((BOX, "square")),
            "<DENSE_REGION_CAPTION>": boxes((BOX, "a small pink square")),
        }
    )
    assert [task for task, _ in asked] == ["<OD>", "<DENSE_REGION_CAPTION>"]


@pytest.mark.parametrize(("score", "kept"), [(0.9, True), (0.3, False)])
def test_a_proposal_that_no_list_has_is_asked_for_its_names(score, kept):
    """A proposal about a box that is known adds nothing; one that gets no name is lost."""
    nearly = (12.0, 11.0, 61.0, 60.0)
    found, asked = annotated(
        {
            "<OD>": boxes((BOX, "square")),
            "<DENSE_REGION_CAPTION>": boxes((BOX, "a pink square")),
            "<REGION_PROPOSAL>": boxes((nearly, ""), (OTHER, ""), (OTHER, ""), (BOX[:2] * 2, "")),
            "<REGION_TO_CATEGORY>": Answer(value="moon", score=score),
            "<REGION_TO_DESCRIPTION>": Answer(value="a small moon", score=score),
        },
        proposals=True,
    )
    assert asked[2:] == [
        ("<REGION_PROPOSAL>", None),
        ("<REGION_TO_CATEGORY>", OTHER),
        ("<REGION_TO_DESCRIPTION>", OTHER),
    ]
    names = [(one.box, one.label, one.description) for one in found.regions]
    known = (BOX, "square", "a pink square")
    assert names == [known, *([(OTHER, "moon", "a small moon")] if kept else [])]
    assert found.lost == ({} if kept else {"regions": 1})
    assert found.rejected["regions: degenerate"] == found.rejected["regions: overlap"] == 1
