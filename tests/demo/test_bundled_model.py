"""The trained model that the library carries."""

import json

import pytest
from PIL import Image

from florence_jax.cli.main import main
from florence_jax.demo import (
    SCORES_NOTE,
    SHAPES,
    Shown,
    brief,
    enlarged_answer,
    held_out_scenes,
    shapes_pipeline,
)
from florence_jax.processing import TASKS
from tests.exported_tokens import tokens_of, tokens_of_torch

BOXES = {"bboxes": [[10, 10, 20, 20]], "labels": ["star"]}
CLASSES = {
    "bboxes": [[10, 10, 20, 20]],
    "bboxes_labels": ["star"],
    "polygons": [],
    "polygons_labels": [],
}
QUADS = {"quad_boxes": [[10, 10, 20, 10, 20, 20, 10, 20]], "labels": ["AB"]}
OUTLINES = {"polygons": [[[10, 10, 20, 10, 20, 20, 10, 20]]], "labels": [""]}


@pytest.fixture(scope="module")
def pipeline():
    return shapes_pipeline()


def test_it_is_small_and_has_a_card():
    assert (SHAPES / "model.safetensors").stat().st_size <= 16_000_000
    card = (SHAPES / "README.md").read_text()
    assert all(f"`{task}`" in card for task in TASKS)


@pytest.mark.parametrize("scenes", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_pytorch_gives_the_same_tokens(pipeline, scenes):
    """Every task about the first scene in the ordinary tests, about all three behind `slow`."""
    rows = held_out_scenes()[: scenes * len(TASKS)]
    pictures = [Image.open(SHAPES / "scenes/test" / row["image"]) for row in rows]
    prefixes = [row["prefix"] for row in rows]
    ours = tokens_of(pipeline, pictures, prefixes)
    assert len({tuple(row) for row in ours}) > len(rows) // 2
    assert ours == tokens_of_torch(SHAPES, pictures, prefixes)


def test_the_demo_shows_every_task_beside_the_truth(tmp_path, capsys):
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "demo/results.jsonl").read_text().splitlines()]
    scenes = sorted({row["scene"] for row in rows})
    assert [row["task"] for row in rows] == len(scenes) * list(TASKS)
    assert [row["prompt"] for row in rows] == [row["prefix"] for row in held_out_scenes()]
    for scene in scenes:
        assert len(list((tmp_path / "demo" / scene).glob("*.png"))) == len(TASKS)
        assert f"scene {scene}" in printed
    assert printed.count("    truth   ") == printed.count("    answer  ") == len(rows)
    wrong = sum(not row["right"] for row in rows)
    assert printed.count("  (wrong)\n") == wrong < len(rows) // 2
    assert f"{len(rows) - wrong} of {len(rows)} answers are right" in printed
    assert SCORES_NOTE in printed


@pytest.mark.parametrize(
    ("truth", "answer", "right"),
    [
        ("star<loc_1><loc_2><loc_3><loc_4>", "star<loc_9><loc_2><loc_3><loc_4>", True),
        ("star", "moon", False),
        (BOXES, BOXES | {"bboxes": [[11, 10, 20, 20]], "scores": [0.3]}, True),
        (BOXES, BOXES | {"labels": ["moon"]}, False),
        (BOXES, BOXES | {"bboxes": [[16, 10, 26, 20]]}, False),
        (BOXES, {"bboxes": [[10, 10, 20, 20]] * 2, "labels": ["star"] * 2}, False),
        (BOXES, {"bboxes": [], "labels": []}, False),
        (CLASSES, CLASSES, True),
        (QUADS, QUADS | {"quad_boxes": [[11, 10, 20, 10, 20, 20, 10, 20]]}, True),
        (QUADS, QUADS | {"labels": ["AC"]}, False),
        (OUTLINES, {"polygons": [[[10, 10, 20, 10, 20, 18, 10, 18]]], "labels": [""]}, True),
        (OUTLINES, {"polygons": [[[10, 10, 20, 10, 10, 12]]], "labels": [""]}, False),
    ],
)
def test_what_is_right(truth, answer, right):
    shown = Shown("a", Image.new("RGB", (64, 64)), "<OD>", "<OD>", truth, answer)
    assert shown.right is right


def test_an_answer_in_a_line_and_in_a_larger_picture():
    boxes = {"bboxes": [[1.0, 2.0, 30.4, 4.0]], "labels": ["star"]}
    assert brief(boxes) == "star 1,2,30,4"
    assert enlarged_answer(boxes, 2.0) == {
        "bboxes": [[2.0, 4.0, 60.8, 8.0]],
        "labels": ["star"],
    }
    polygons = {"polygons": [[[0.0, 0.0, 9.0, 0.0, 9.0, 9.0]]], "labels": [""]}
    assert brief(polygons) == "3 corners"
    assert enlarged_answer(polygons, 3.0)["polygons"] == [[[0.0, 0.0, 27.0, 0.0, 27.0, 27.0]]]
    assert brief("A red star.") == enlarged_answer("A red star.", 2.0) == "A red star."
    assert brief({"bboxes": [], "labels": []}) == "nothing"
