"""The file format: what is written is read back, by this library and by the trainer."""

import dataclasses
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from florence_jax.annotation.outputs import write_coco, write_rows
from florence_jax.annotation.schema import (
    AnnotationError,
    Text,
    from_row,
    read_annotations,
    to_row,
    write_annotations,
)
from florence_jax.annotation.to_examples import to_examples
from florence_jax.processing import TASKS, dequantize, parse, quantize
from florence_jax.processing.targets import target_text
from tests.annotation.generated import SIZE, annotations
from tests.annotation.written import EXAMPLE

fuzz = settings(max_examples=25)


@fuzz
@given(annotations())
def test_rows_are_read_back(annotation):
    row = json.loads(json.dumps(to_row(annotation)))
    assert from_row(row) == annotation
    assert to_row(from_row(row)) == to_row(annotation)


@fuzz
@given(annotations())
def test_every_question_can_be_written_and_is_read_back(annotation):
    """The suffix is what the trainer learns; reading it gives the answer at its bins' centres."""
    for example in to_examples(annotation):
        suffix = example.labels_text(SIZE)
        found = parse(suffix, example.task, SIZE)[example.task]
        assert target_text(example.task, found, SIZE) == suffix
        if "bboxes" not in example.labels or isinstance(example.labels, str):
            continue
        shown = dequantize(quantize(example.labels["bboxes"], SIZE), SIZE)
        # In the order of the labels, which may be another.
        np.testing.assert_allclose(sorted(found["bboxes"]), sorted(shown.tolist()), rtol=1e-12)


def test_the_questions_of_an_annotation():
    asked = {}
    for example in to_examples(EXAMPLE):
        asked.setdefault(example.task, []).append((example.prompt, example.labels_text(SIZE)))
    dog, ball = "<loc_100><loc_100><loc_500><loc_700>", "<loc_600><loc_600><loc_700><loc_733>"
    outline = "<loc_100><loc_100><loc_500><loc_100><loc_500><loc_700>"
    assert asked == {
        "<CAPTION>": [("", "A dog and a ball.")],
        "<MORE_DETAILED_CAPTION>": [("", "A brown dog. It sees a ball.")],
        "<OD>": [("", f"dog{dog}ball{ball}")],
        "<DENSE_REGION_CAPTION>": [("", f"a brown dog{dog}a red ball{ball}")],
        "<REGION_PROPOSAL>": [("", dog + ball)],
        "<OPEN_VOCABULARY_DETECTION>": [("dog", f"dog{dog}"), ("ball", f"ball{ball}")],
        "<REGION_TO_CATEGORY>": [(dog, f"dog{dog}"), (ball, f"ball{ball}")],
        "<REGION_TO_DESCRIPTION>": [(dog, f"a brown dog{dog}"), (ball, f"a red ball{ball}")],
        "<CAPTION_TO_PHRASE_GROUNDING>": [("A dog and a ball.", f"A dog{dog}a ball{ball}")],
        "<REGION_TO_SEGMENTATION>": [(dog, outline)],
        "<REFERRING_EXPRESSION_SEGMENTATION>": [("A dog", outline)],
        "<OCR>": [("", "STOP")],
        "<OCR_WITH_REGION>": [
            ("", f"STOP{''.join(f'<loc_{n}>' for n in (0, 0, 100, 0, 100, 100, 0, 100))}")
        ],
        "<REGION_TO_OCR>": [
            ("<loc_0><loc_0><loc_100><loc_100>", "STOP<loc_0><loc_0><loc_100><loc_100>")
        ],
    }


def test_labels_that_no_answer_holds_teach_nothing():
    """One region without a writable name, and detection would learn to leave it out."""
    odd = dataclasses.replace(EXAMPLE.regions[0], label="a<b")
    broken = dataclasses.replace(EXAMPLE, regions=(odd, EXAMPLE.regions[1]))
    assert to_examples(broken, ("<OD>",)) == []
    assert [one.prompt for one in to_examples(broken, ("<OPEN_VOCABULARY_DETECTION>",))] == ["ball"]


@pytest.mark.parametrize(
    ("kind", "unasked"),
    [
        (
            "regions",
            {"<OD>", "<DENSE_REGION_CAPTION>", "<REGION_PROPOSAL>", "<OPEN_VOCABULARY_DETECTION>"},
        ),
        ("ocr", {"<OCR>", "<OCR_WITH_REGION>"}),
    ],
)
def test_an_image_that_lost_a_thing_is_not_asked_for_all(kind, unasked):
    holed = dataclasses.replace(EXAMPLE, lost={kind: 1})
    assert from_row(to_row(holed)) == holed
    whole = {example.task for example in to_examples(EXAMPLE)}
    assert whole - {example.task for example in to_examples(holed)} == unasked
    named = ("<REGION_TO_CATEGORY>", "<REGION_TO_OCR>", "<CAPTION>")
    assert to_examples(holed, named) == to_examples(EXAMPLE, named)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2, this release reads 1"),
        ({"width": None, "regions": None}, "is not an annotation"),
        ({"regions": [{"box": [1, 2, 3], "score": 1.0}]}, "box has 3 numbers"),
        ({"regions": [{"box": [1, 2, 3, float("nan")], "score": 1.0}]}, "not finite"),
        ({"regions": [{"box": [1, 2, 3, 4], "score": 1.0, "colour": "red"}]}, "colour"),
        ({"texts": [{"level": "short", "text": "", "score": 1.0}]}, "'short' is none of"),
        ({"texts": []}, "'A dog' belongs to no text"),
    ],
)
def test_a_row_that_is_none_is_named(change, message):
    with pytest.raises(AnnotationError, match=f"file:3.*{message}"):
        from_row(to_row(EXAMPLE) | change, "file:3")


def test_files(tmp_path):
    other = dataclasses.replace(EXAMPLE, id="b.png", image="b.png")
    assert write_annotations([EXAMPLE, other], tmp_path / "annotations.jsonl") == 2
    assert list(read_annotations(tmp_path)) == [EXAMPLE, other]
    blocks = tmp_path / "run"
    blocks.mkdir()
    with pytest.raises(AnnotationError, match="holds no annotations"):
        list(read_annotations(blocks))
    (blocks / "block-00001-of-00002.jsonl").write_text(json.dumps(to_row(other)) + "\n")
    (blocks / "block-00000-of-00002.jsonl").write_text(
        json.dumps({"id": "bad.png", "error": "cannot be read"})
        + "\n"
        + json.dumps(to_row(EXAMPLE))
    )
    assert list(read_annotations(blocks)) == [EXAMPLE, other]


def test_image_names_that_are_no_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    named = dataclasses.replace(EXAMPLE, id=name, image=name)
    write_annotations([named], tmp_path / "annotations.jsonl")
    assert [one.id for one in read_annotations(tmp_path)] == [name]
    write_coco([named], tmp_path / "instances.json", tmp_path / "captions.json")
    written = json.loads((tmp_path / "captions.json").read_text(encoding="utf-8"))
    assert written["images"][0]["file_name"] == name
    write_rows([named], tmp_path / "rows.jsonl")
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["image"] for line in lines} == {name}


def test_the_trainer_reads_a_directory(tmp_path):
    """Every example becomes the row that the export of rows has, in the pixels of the picture."""
    from florence_jax.processing import demo_tokenizer
    from florence_jax.training.data.preprocess import ExampleRef, Preprocessor
    from florence_jax.training.data.sources import AnnotationsConfig, open_data

    # Half as large as the annotation says: a copy, whose coordinates are scaled.
    Image.new("RGB", (SIZE[0] // 2, SIZE[1] // 2)).save(tmp_path / "a.png")
    second = dataclasses.replace(EXAMPLE, id="b", phrases=(), ocr=())
    write_annotations([EXAMPLE, second], tmp_path / "annotations.jsonl")
    write_rows([EXAMPLE, second], tmp_path / "rows.jsonl")
    config = AnnotationsConfig(path=str(tmp_path / "annotations.jsonl"), image_root=str(tmp_path))
    found = open_data(train=(config,)).train
    assert [name.split()[-1] for name, _, _ in found] == [
        task for task in TASKS if task != "<DETAILED_CAPTION>"
    ]
    assert sum(weight for _, _, weight in found) == pytest.approx(1.0)
    tokenizer = demo_tokenizer()
    preprocessor = Preprocessor(tokenizer=tokenizer, image_size=(32, 32))
    learnt = []
    for name, source, _ in found:
        for index in range(len(source)):
            row = preprocessor(ExampleRef(name, source, index), np.random.default_rng(0))
            assert row.problem is None
            prefix = source[index].prefix
            learnt.append((prefix, tokenizer.decode(row.labels[1:-1])))
    lines = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert sorted(learnt) == sorted((line["prefix"], line["suffix"]) for line in lines)
    # Together, as many of an image as there may be, each task's first question before any second.
    config = dataclasses.replace(config, questions=5)
    ((_, source, weight),) = open_data(train=(config,)).train
    assert weight == pytest.approx(1.0)
    examples = [source[index] for index in range(len(source))]
    assert [1 + len(one.same_image) for one in examples] == [5, 5, 5, 2, 5, 5, 2]
    asked = [(one.prefix, one.image.name) for head in examples for one in (head, *head.same_image)]
    assert sorted(prefix for prefix, _ in asked) == sorted(prefix for prefix, _ in learnt)
    assert {name for _, name in asked} == {"a.png"}
    heads = [one.task for head in examples[:4] for one in (head, *head.same_image)]
    assert len(set(heads[:14])) == 14
    one = AnnotationsConfig(path=str(tmp_path), tasks=("<DETAILED_CAPTION>",))
    with pytest.raises(ValueError, match="answers nothing of <DETAILED_CAPTION>"):
        open_data((one,))


def test_long_answers_are_asked_apart_from_short_ones(tmp_path):
    from florence_jax.training.data.sources import AnnotationsConfig, open_data

    wordy = Text(level="detailed", text="A brown dog sees a ball. " * 9, score=0.9)
    second = dataclasses.replace(EXAMPLE, id="b", texts=(*EXAMPLE.texts, wordy))
    write_annotations([EXAMPLE, second], tmp_path / "annotations.jsonl")
    config = AnnotationsConfig(
        path=str(tmp_path),
        tasks=("<CAPTION>", "<DETAILED_CAPTION>", "<OD>"),
        questions=2,
        weight=3.0,
    )
    found = open_data(train=(config,)).train
    assert [name.partition(" ")[2] for name, _, _ in found] == [
        "<CAPTION> <OD>",
        "<DETAILED_CAPTION>",
    ]
    assert [weight for _, _, weight in found] == pytest.approx([2.0, 1.0])
    assert [len(source) for _, source, _ in found] == [2, 1]


def test_coco_is_read_by_pycocotools(tmp_path):
    coco = pytest.importorskip("pycocotools.coco", reason="needs pycocotools")
    mask = pytest.importorskip("pycocotools.mask", reason="needs pycocotools")
    instances, captions = tmp_path / "instances.coco.json", tmp_path / "captions.coco.json"
    write_coco([EXAMPLE], instances, captions)
    read = coco.COCO(str(instances))
    assert [one["name"] for one in read.loadCats(read.getCatIds())] == ["ball", "dog"]
    dog, ball = read.loadAnns(read.getAnnIds(imgIds=[1]))
    assert (dog["bbox"], dog["category_id"]) == ([64.0, 48.0, 256.0, 288.0], 2)
    assert dog["caption"] == "a brown dog"
    assert ball["area"] == 64.0 * 64.0
    # A triangle of half the box.
    assert dog["area"] == 256.0 * 288.0 / 2
    assert mask.area(read.annToRLE(dog)) == pytest.approx(dog["area"], rel=0.01)
    texts = coco.COCO(str(captions))
    assert [one["caption"] for one in texts.loadAnns(texts.getAnnIds())] == [
        "A dog and a ball.",
        "A brown dog. It sees a ball.",
    ]
    from florence_jax.training.data.coco import Coco

    (tmp_path / "a.png").touch()
    assert Coco(instances, "<OD>")[0].labels["labels"] == ["dog", "ball"]


@pytest.mark.parametrize("row", [{"messages": []}, {}])
def test_rows_of_another_kind_are_named_by_their_columns(row):
    with pytest.raises(AnnotationError, match=r"no row of florence-jax annotate: it has"):
        from_row(row, "rows.jsonl:0")
