"""Layouts are recognised by what a folder holds, by the trainer and the evaluation alike."""

import json
import shutil

import pytest

from florence_jax.datasets.layouts import recognise
from florence_jax.datasets.text_rows import DatasetError
from florence_jax.evaluation.datasets.custom import read_custom
from florence_jax.evaluation.datasets.dataset import LayoutError
from florence_jax.training.data.example import DataError
from florence_jax.training.data.sources import open_data
from tests.datasets.layouts import (
    cvat,
    label_studio,
    labelme,
    picture,
    rectangle,
    shape,
    voc,
    voc_xml,
    yolo,
)


def found(path):
    return [(one.kind, one.split, one.path.relative_to(path).as_posix()) for one in recognise(path)]


def coco(path, name="a.jpg"):
    content = {
        "images": [{"id": 1, "file_name": name, "width": 80, "height": 40}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 4, 16, 8]}],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_folders_of_splits_in_every_layout(tmp_path):
    box = shape("cat", "rectangle", [[8, 4], [24, 12]])
    line = {"image": "a.jpg", "prefix": "<OD>", "suffix": "cat<loc_1><loc_2><loc_3><loc_4>"}
    for split in ("train", "val", "test"):
        folder = tmp_path / split
        labelme(folder, [box])
        assert found(tmp_path)[0][:2] == ("labelme", "train")
    (tmp_path / "val" / "a.json").unlink()
    (tmp_path / "val" / "rows.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "test" / "a.json").unlink()
    (tmp_path / "test" / "a.xml").write_text(voc_xml("a.jpg", [("cat", (9, 5, 24, 12))]))
    assert found(tmp_path) == [
        ("labelme", "train", "train"),
        ("jsonl", "valid", "val/rows.jsonl"),
        ("voc", "test", "test"),
    ]
    (tmp_path / "val" / "rows.jsonl").unlink()
    task = label_studio(tmp_path / "val", [rectangle("cat", 10, 10, 20, 20)])
    (tmp_path / "val" / "project-3.json").write_text(json.dumps([task]))
    (tmp_path / "test" / "a.xml").unlink()
    cvat(tmp_path / "test", '<box label="cat" xtl="8" ytl="4" xbr="24" ybr="12"/>')
    assert found(tmp_path) == [
        ("labelme", "train", "train"),
        ("label_studio", "valid", "val/project-3.json"),
        ("cvat", "test", "test/annotations.xml"),
    ]


def test_test_images_without_answers_are_no_split(tmp_path):
    labelme(tmp_path / "train", [shape("cat", "rectangle", [[8, 4], [24, 12]])])
    picture(tmp_path / "test" / "a.jpg")
    assert found(tmp_path) == [("labelme", "train", "train")]


def test_layouts_that_hold_their_splits(tmp_path):
    assert found(yolo(tmp_path / "yolo")) == [
        ("yolo", "train", "data.yaml"),
        ("yolo", "valid", "data.yaml"),
    ]
    assert found(voc(tmp_path / "voc")) == [("voc", "train", "."), ("voc", "valid", ".")]
    shutil.rmtree(tmp_path / "voc" / "ImageSets")
    assert found(tmp_path / "voc") == [("voc", "", ".")]


def test_cocos_and_cvats_folders(tmp_path):
    for name, images in (("train2017", "train2017"), ("val2017", "images/val2017")):
        coco(tmp_path / "coco" / "annotations" / f"instances_{name}.json")
        picture(tmp_path / "coco" / images / "a.jpg")
    (tmp_path / "coco" / "annotations" / "captions_val2017.json").write_text("{}")
    train, valid = recognise(tmp_path / "coco")
    assert (train.split, valid.split) == ("train", "valid")
    assert train.image_root == tmp_path / "coco" / "train2017"
    assert valid.image_root == tmp_path / "coco" / "images" / "val2017"
    coco(tmp_path / "cvat" / "annotations" / "instances_default.json")
    picture(tmp_path / "cvat" / "images" / "default" / "a.jpg")
    (default,) = recognise(tmp_path / "cvat")
    assert (default.kind, default.split) == ("coco", "")
    assert default.image_root == tmp_path / "cvat" / "images" / "default"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "holds no data set that is read, but nothing: expected"),
        (("a.txt",), "holds no data set that is read, but a.txt"),
        (("train/a.jsonl", "val/a.txt"), "val holds no data set that is read, but a.txt"),
        (("train/a.jsonl", "train/b.jsonl"), "must hold one .jsonl file, and has a.jsonl, b.jsonl"),
        (("data.yaml",), "data.yaml is not YAML"),
    ],
)
def test_a_folder_that_is_no_data_set_is_named(tmp_path, names, message):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a: [")
    with pytest.raises(DatasetError, match=message):
        recognise(tmp_path)


@pytest.mark.parametrize("make", [yolo, voc])
def test_the_trainer_and_the_evaluation_read_the_same_objects(tmp_path, make):
    root = make(tmp_path)
    opened = open_data(directory=str(root), order="as_annotated")
    ((_, train, _),) = opened.train
    (valid,) = opened.valid.values()
    for source, split in ((train, "train"), (valid, "valid")):
        scored = read_custom(root, None, split)
        assert len(source) == len(scored.items)
        for index, item in enumerate(scored.items):
            example = source[index]
            assert str(example.image).endswith(item.image.name)
            assert example.labels == item.extra["truth"]
    with pytest.raises(LayoutError, match="has the splits train, valid: name one by --split"):
        read_custom(root)
    with pytest.raises(LayoutError, match="has no split 'test', it has train, valid"):
        read_custom(root, None, "test")


def test_a_broken_file_is_a_row_of_the_trainer_and_ends_an_evaluation(tmp_path):
    root = voc(tmp_path)
    (root / "Annotations" / "1.xml").write_text("<annotation>")
    ((_, train, _),) = open_data(directory=str(root)).train
    assert len(train) == 2
    assert train[0].image.name == "0.jpg"
    with pytest.raises(DataError, match=r"1\.xml is not XML"):
        train[1]
    with pytest.raises(
        LayoutError, match=r"1 files or entries cannot be read, .*1\.xml is not XML"
    ):
        read_custom(root, None, "train")


def test_a_split_that_is_not_there(tmp_path):
    picture(tmp_path / "valid" / "a.jpg")
    coco(tmp_path / "valid" / "_annotations.coco.json")
    with pytest.raises(DataError, match="has no split 'train', it has valid: name the file"):
        open_data(directory=str(tmp_path))


def test_tasks_of_a_layout(tmp_path):
    settings = {"path": str(yolo(tmp_path) / "data.yaml"), "split": "train"}
    from florence_jax.training.data.sources import YoloConfig

    config = YoloConfig(**settings, tasks=("<OD>", "<REFERRING_EXPRESSION_SEGMENTATION>"))
    with pytest.raises(DataError, match="no annotations for <REFERRING_EXPRESSION_SEGMENTATION>"):
        list(config.open(0))
    config = YoloConfig(**settings, tasks=("<OD>", "<REGION_PROPOSAL>"))
    names = [name for name, *_ in config.open(0)]
    assert [name.rpartition("data.yaml")[2] for name in names] == [
        " train <OD>",
        " train <REGION_PROPOSAL>",
    ]
    files = [name for name, _ in config.files()]
    assert files[0].endswith("data.yaml")
    assert sum(name.endswith(".txt") for name in files) == 3
