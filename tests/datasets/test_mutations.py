"""Files of training and evaluation data with one value changed: read, or refused in words."""

import copy
import dataclasses
import json
import random

import numpy as np
import pytest
from PIL import Image

from florence_jax.annotation.merge import merge_sets
from florence_jax.annotation.schema import AnnotationError, read_annotations, to_row
from florence_jax.evaluation.datasets.dataset import LayoutError
from florence_jax.evaluation.run import plan_evaluation
from florence_jax.training.data.annotations import Annotations
from florence_jax.training.data.coco import Coco
from florence_jax.training.data.example import DataError, Example, ordered_labels
from florence_jax.training.data.tabular import Jsonl
from florence_jax.training.data.vqa import DocVqa, Vqa
from tests.annotation.written import EXAMPLE
from tests.datasets.habits import base
from tests.evaluation import miniature

MUTATIONS = 120
_DEEP = "[" * 3000 + "]" * 3000
_VALUES = (
    None, True, 0, -1, 7, 1.5, 1e308, 10**400, float("nan"), float("inf"), "", "7", "text", "a\0b",
    "\ud800", "x" * 5000, "..", [], [3], [[3]], [None], {}, {"a": None}, [1, 2, 3, 4], "DEEP",
)  # fmt: skip


def mutated(content, draw):
    """JSON text of the content with one value, anywhere, left out, repeated or another."""
    content = copy.deepcopy(content)
    place = content
    while True:
        key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or draw.random() < 0.3:
            break
        place = place[key]
    kind = draw.random()
    if kind < 0.25:
        del place[key]
    elif kind < 0.35 and isinstance(place, list):
        place.append(place[key])
    else:
        place[key] = draw.choice(_VALUES)
    return json.dumps(content).replace('"DEEP"', _DEEP)


def read_all(source):
    """Every row as the trainer's Preprocessor reads it, up to its text; faults are DataErrors."""
    for index in range(len(source)):
        try:
            example = source[index]
        except DataError:
            continue
        assert isinstance(example, Example)
        assert isinstance(example.prefix, str)
        for one in (example, *example.same_image):
            try:
                text = ordered_labels(
                    dataclasses.replace(one, order="random"), (40, 20), np.random.default_rng(0)
                )
            except ValueError:
                continue  # an answer that its task cannot express is put aside
            assert isinstance(text, str)


def coco():
    content = base()
    for annotation in content["annotations"]:
        annotation["caption"] = "a thing"
        annotation["segmentation"] = [[10, 10, 50, 10, 50, 50]]
    content["annotations"][1]["segmentation"] = {"size": [4, 4], "counts": [5, 2, 2, 2, 5]}
    content["annotations"][2]["segmentation"] = {"size": [4, 4], "counts": "52205"}
    return content


def questions():
    answers = [{"answer": "red"}, {"answer": "red"}, {"answer": "blue"}]
    return {
        "questions": [
            {"question_id": n, "question": "What?", "image": "a.png", "answers": answers}
            for n in range(3)
        ]
    }


def documents():
    return {"data": [{"question": "Total?", "image": "a.png", "answers": ["12", "12.00"]}] * 2}


def answers_apart():
    return {
        "annotations": [
            {"question_id": n, "multiple_choice_answer": "red", "answers": [{"answer": "red"}]}
            for n in range(3)
        ]
    }


def open_apart(path):
    asked = path.with_name("questions.json")
    asked.write_text(json.dumps(questions()))
    return Vqa(asked, annotations=path)


TASKS = (
    "<OD>",
    "<REGION_PROPOSAL>",
    "<OPEN_VOCABULARY_DETECTION>",
    "<CAPTION>",
    "<REGION_TO_CATEGORY>",
    "<REFERRING_EXPRESSION_SEGMENTATION>",
    "<CAPTION_TO_PHRASE_GROUNDING>",
)
SOURCES = {
    **{f"coco {task}": (coco, lambda path, task=task: Coco(path, task)) for task in TASKS},
    "vqa": (questions, Vqa),
    "vqa, format": (questions, lambda path: Vqa(path, image_pattern="{question_id:03d}{image}")),
    "vqa, answers": (answers_apart, open_apart),
    "docvqa": (documents, DocVqa),
    "annotations": (lambda: to_row(EXAMPLE), lambda path: Annotations(path, ["<OD>", "<OCR>"])),
    "annotations, tasks": (
        lambda: to_row(EXAMPLE),
        lambda path: Annotations(path, Annotations.tasks_of(path), questions=3),
    ),
    "rows": (
        lambda: {
            "image": "a.png",
            "prefix": "<OD>",
            "suffix": "cat<loc_1><loc_2><loc_3><loc_4>",
        },
        Jsonl,
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_training_data_are_read_or_refused(tmp_path, name):
    content, opened = SOURCES[name]
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    draw, refused = random.Random(name), []
    path = tmp_path / "data.jsonl"
    for _ in range(MUTATIONS):
        path.write_text(mutated(content(), draw))
        try:
            read_all(opened(path))
        except DataError as error:
            refused.append(str(error))
    assert refused
    assert all("data.jsonl" in message and len(message) < 2000 for message in refused)


@pytest.mark.parametrize("fusion", ["nms", "average"])
def test_annotations_are_merged_or_refused(tmp_path, fusion):
    draw, merged, refused = random.Random(fusion), 0, []
    path = tmp_path / "annotations.jsonl"
    for _ in range(2 * MUTATIONS):
        path.write_text(mutated(to_row(EXAMPLE), draw) + "\n")
        try:
            (_, *_) = merge_sets([read_annotations(path), [EXAMPLE]], fusion=fusion)
            merged += 1
        except AnnotationError as error:
            refused.append(str(error))
    assert merged
    assert refused
    assert all(len(message) < 2000 for message in refused)


@pytest.mark.parametrize("kind", ["coco", "rows"])
def test_own_files_are_planned_or_refused(tmp_path, kind):
    draw, refused = random.Random(kind), []
    rows = miniature.own(tmp_path)
    path = tmp_path / f"own.{'json' if kind == 'coco' else 'jsonl'}"
    lines = [json.loads(line) for line in rows.read_text().splitlines() if line]
    for _ in range(2 * MUTATIONS):
        if kind == "coco":
            path.write_text(mutated(coco(), draw))
        else:
            path.write_text(mutated(draw.choice(lines), draw))
        try:
            plan_evaluation("own", path)
        except LayoutError as error:
            refused.append(str(error))
    assert refused
    # Not by the net below all layouts, whose messages name no entry.
    assert all("own.json" in message and "authors publish" not in message for message in refused)
