"""Pictures and coordinates move together: what lies at a coordinate still lies at it afterwards."""

import numpy as np
import pytest
from PIL import Image

from florence_jax.processing import parse, text_to_box
from florence_jax.processing.targets import target_text
from florence_jax.training.data.augment import AugmentConfig, augment
from florence_jax.training.data.example import Example

SIZE = (200, 100)
FLIP = AugmentConfig(flip=1.0)
CROP = AugmentConfig(scale_jitter=0.6)
RNG = np.random.default_rng


def marked(box):
    """Black, with a white box."""
    picture = Image.new("RGB", SIZE)
    picture.paste((255, 255, 255), tuple(round(edge) for edge in box))
    return picture


def white(picture):
    rows, columns = np.nonzero(np.asarray(picture)[..., 0])
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def example(task, answer, prompt=""):
    return Example(id="0", image=b"", task=task, prompt=prompt, labels=answer)


@pytest.mark.parametrize("config", [FLIP, CROP, AugmentConfig(flip=0.5, scale_jitter=0.5)])
@pytest.mark.parametrize("as_text", [True, False])
def test_a_box_stays_on_its_object(config, as_text):
    box = [120.0, 20.0, 160.0, 60.0]
    answer = {"bboxes": [box], "labels": ["thing"]}
    text = target_text("<OD>", answer, SIZE)
    for seed in range(20):
        start = example("<OD>", text if as_text else answer)
        picture, moved = augment(marked(box), start, config, RNG(seed))
        after = moved.labels
        if isinstance(after, str):
            after = parse(after, "<OD>", picture.size)["<OD>"]
        assert after["labels"] == ["thing"]
        np.testing.assert_allclose(after["bboxes"][0], white(picture), atol=0.6)


def test_windows_vary_and_hold_every_box():
    boxes = [[10.0, 10.0, 50.0, 40.0], [60.0, 30.0, 90.0, 60.0]]
    start = example("<OD>", {"bboxes": boxes, "labels": ["a", "b"]})
    sizes = set()
    for seed in range(30):
        picture, moved = augment(Image.new("RGB", SIZE), start, CROP, RNG(seed))
        sizes.add(picture.size)
        found = np.array(moved.labels["bboxes"])
        assert (found >= 0).all()
        assert (found <= [*picture.size, *picture.size]).all()
        np.testing.assert_allclose(found[:, 2:] - found[:, :2], [[40, 30], [30, 30]])
    assert len(sizes) > 15


def test_polygons_and_quads_stay_clockwise():
    triangle = [10.0, 10.0, 60.0, 20.0, 30.0, 80.0]
    start = example("<REFERRING_EXPRESSION_SEGMENTATION>", {"polygons": [[triangle]]}, "a thing")
    _, moved = augment(Image.new("RGB", SIZE), start, FLIP, RNG(0))
    ring = np.reshape(moved.labels["polygons"][0][0], (-1, 2))
    assert {tuple(point) for point in ring} == {(190, 10), (140, 20), (170, 80)}
    # What is written is clockwise whatever the mirror made of it.
    text = target_text(start.task, moved.labels, SIZE)
    x, y = np.reshape(parse(text, start.task, SIZE)[start.task]["polygons"][0][0], (-1, 2)).T
    assert np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) > 0


def test_the_region_in_a_prompt_moves_too():
    region = "<loc_100><loc_200><loc_299><loc_399>"
    start = example("<REGION_TO_CATEGORY>", f"car{region}", region)
    _, moved = augment(Image.new("RGB", SIZE), start, FLIP, RNG(0))
    assert moved.prompt == "<loc_700><loc_200><loc_899><loc_399>"
    assert moved.labels == f"car{moved.prompt}"
    assert text_to_box(moved.prompt, SIZE)[0] > 100


@pytest.mark.parametrize(
    ("task", "answer", "prompt"),
    [
        ("<OCR>", "STOP", ""),
        ("<OCR_WITH_REGION>", {"quad_boxes": [[0, 0, 9, 0, 9, 9, 0, 9]], "labels": ["STOP"]}, ""),
        ("<DocVQA>", "12 May", "What is the date?"),
        ("", "yes", "Is there a dog?"),
        ("<CAPTION>", "a dog to the left of a cat", ""),
        ("<OD>", {"bboxes": [[0, 0, 9, 9]], "labels": ["Left hand"]}, ""),
        ("<CAPTION_TO_PHRASE_GROUNDING>", {"bboxes": [], "labels": []}, "the dog on the right"),
    ],
)
def test_text_and_sides_are_never_mirrored(task, answer, prompt):
    picture = marked([0, 0, 50, 50])
    after, same = augment(picture, example(task, answer, prompt), FLIP, RNG(0))
    assert white(after) == [0, 0, 50, 50]
    assert same.labels == answer


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("<OD>", "car<loc_1><loc_2><loc_3>"),
        ("<MyTask>", "car<loc_1><loc_2><loc_3><loc_4>"),
        ("<CAPTION>", "a car at <loc_1><loc_2>"),
        ("<CAPTION>", "a car to the left of a house"),
    ],
)
def test_what_cannot_be_moved_exactly_keeps_its_geometry(task, answer):
    config = AugmentConfig(flip=1.0, scale_jitter=0.5)
    picture = marked([0, 0, 50, 50])
    after, same = augment(picture, example(task, answer), config, RNG(0))
    assert (white(after), after.size) == ([0, 0, 50, 50], SIZE)
    assert same.labels == answer


def test_a_flip_twice_is_the_same_text():
    text = target_text(
        "<OD>", {"bboxes": [[3.0, 4.0, 50.0, 60.0], [70, 5, 90, 30]], "labels": ["a", "b"]}, SIZE
    )
    start = example("<OD>", text)
    once_picture, once = augment(Image.new("RGB", SIZE), start, FLIP, RNG(0))
    written = target_text("<OD>", once.labels, SIZE)
    assert written != text
    _, twice = augment(once_picture, example("<OD>", written), FLIP, RNG(0))
    assert target_text("<OD>", twice.labels, SIZE) == text


def test_colour_alone_moves_nothing():
    picture = Image.new("RGB", SIZE, (90, 120, 40))
    start = example("<MyTask>", "car<loc_1>")
    after, same = augment(picture, start, AugmentConfig(colour=0.5), RNG(0))
    assert same == start
    assert after.size == SIZE
    assert after.getpixel((0, 0)) != (90, 120, 40)
