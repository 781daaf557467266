"""COCO files with one fault each: the trainer reads them as they are meant, or names the fault."""

import json

import numpy as np
import pytest
from PIL import Image

from florence_jax.processing import demo_tokenizer, parse
from florence_jax.training.data.coco import Coco
from florence_jax.training.data.example import DataError, Example
from florence_jax.training.data.loader import DataLoader
from florence_jax.training.data.preprocess import Preprocessor
from florence_jax.training.data.sources import (
    CocoConfig,
    JsonlConfig,
    open_data,
)
from tests.datasets.habits import HABITS, SCENES, base, written
from tests.shared_data import needs_shared, shared_path

ROW = Preprocessor(tokenizer=demo_tokenizer(), image_size=(32, 32))
W, H = 64, 48


def answer(source, index=0):
    row = ROW.of_example(source[index], np.random.default_rng(0))
    return ROW.tokenizer.decode(row.labels[1:-1])


def boxes(source, index=0):
    """[(label, box in pixels)] that the row teaches."""
    found = parse(answer(source, index), "<OD>", (W, H))["<OD>"]
    return list(zip(found["labels"], found["bboxes"], strict=True))


def near(expected, actual):
    assert [label for label, _ in expected] == [label for label, _ in actual]
    for (_, one), (_, other) in zip(expected, actual, strict=True):
        np.testing.assert_allclose(one, other, atol=0.1)


@pytest.fixture
def file(tmp_path):
    """Writes a file of annotations on a.png and b.png."""
    for name in "ab":
        Image.new("RGB", (W, H)).save(tmp_path / f"{name}.png")

    def write(annotations, **parts):
        content = {
            "images": [
                {"id": number, "file_name": f"{name}.png", "width": W, "height": H}
                for number, name in ((1, "a"), (2, "b"))
            ],
            "categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}],
            "annotations": [{"image_id": 1, "category_id": 1, **one} for one in annotations],
        }
        path = tmp_path / "boxes.json"
        path.write_text(json.dumps(content | parts))
        return path

    return write


@pytest.mark.parametrize("habit", HABITS)
def test_every_habit_teaches_what_coco_teaches(tmp_path, habit):
    if habit == "orphans":
        pytest.skip("the trainer refuses annotations of other images")
    expected = Coco(written(tmp_path / "coco.json", "as COCO has it"), "<OD>", SCENES)
    found = Coco(written(tmp_path / "own.json", habit), "<OD>", SCENES)
    for index in range(3):
        assert answer(found, index).lower() == answer(expected, index)


def test_one_share_beyond_the_edge_leaves_the_others_shares(file):
    path = file([{"bbox": [0.15, 0.2, 0.32, 0.42]}, {"image_id": 2, "bbox": [0, 0, 1.0004, 0.5]}])
    source = Coco(path, "<OD>")
    near([("cat", [9.6, 9.6, 30.08, 29.76])], boxes(source))
    near([("cat", [0, 0, 64, 24])], boxes(source, 1))


def test_shares_beside_pixels_are_refused(file):
    path = file([{"bbox": [0.1, 0.2, 0.3, 0.4]}, {"image_id": 2, "bbox": [10, 12, 20, 20]}])
    with pytest.raises(DataError, match=r"annotations\[0\] is \[0.1, .* shares .* pixels: write"):
        Coco(path, "<OD>")


def test_one_pixel_is_not_the_whole_picture(file):
    source = Coco(file([{"bbox": [0, 0, 1, 1]}]), "<OD>")
    near([("cat", [0, 0, 1, 1])], boxes(source))
    assert "taken for pixels, as COCO has them" in source.notes[0]
    beside = Coco(file([{"bbox": [0, 0, 1, 1]}, {"bbox": [10, 10, 20, 20]}]), "<OD>")
    near([("cat", [0, 0, 1, 1]), ("cat", [10, 10, 30, 30])], boxes(beside))
    whole = Coco(file([{"bbox": [0, 0, 1, 1]}, {"bbox": [0.5, 0.5, 0.25, 0.25]}]), "<OD>")
    near([("cat", [0, 0, 64, 48]), ("cat", [32, 24, 48, 36])], boxes(whole))


TRIANGLE = [5, 5, 25, 5, 25, 25]
# 12 columns of 48 pixels: rows 10 to 19 of columns 4 to 11.
COUNTS = [4 * H + 10, *[10, H - 10] * 7, 10, H - 20 + 52 * H]


def compressed(counts):
    """As pycocotools writes it."""
    mask = pytest.importorskip("pycocotools.mask")
    return mask.frPyObjects({"size": [H, W], "counts": counts}, H, W)["counts"].decode()


@pytest.mark.parametrize("box", ["absent", None, []])
def test_an_object_without_a_box_has_that_of_its_polygon(file, box):
    shape = {"segmentation": [TRIANGLE]} | ({} if box == "absent" else {"bbox": box})
    source = Coco(file([shape, {"bbox": [30, 30, 10, 10]}]), "<OD>")
    near([("cat", [5, 5, 25, 25]), ("cat", [30, 30, 40, 40])], boxes(source))


@pytest.mark.parametrize("packed", [False, True])
def test_masks_are_decoded(file, packed):
    counts = compressed(COUNTS) if packed else COUNTS
    path = file([{"segmentation": {"size": [H, W], "counts": counts}, "caption": "a box"}])
    near([("cat", [4, 10, 12, 20])], boxes(Coco(path, "<OD>")))
    example = Coco(path, "<REFERRING_EXPRESSION_SEGMENTATION>")[0]
    ((polygon,),) = example.labels["polygons"]
    assert sorted(zip(polygon[::2], polygon[1::2], strict=True)) == [
        (4, 10), (4, 20), (12, 10), (12, 20),
    ]  # fmt: skip


def test_the_box_of_a_mask_is_around_its_specks_too(file):
    # A second pixel at (0, 0), too small for a polygon of its own.
    counts = [0, 1, COUNTS[0] - 1, *COUNTS[1:]]
    source = Coco(file([{"segmentation": {"size": [H, W], "counts": counts}}]), "<OD>")
    near([("cat", [0, 0, 12, 20])], boxes(source))


def test_masks_of_several_parts_and_a_hole():
    from florence_jax.annotation.boxes import enclosed_area
    from florence_jax.datasets.outlines import mask_polygons

    mask = np.zeros((40, 60), bool)
    mask[5:25, 5:25] = True
    mask[10:15, 10:15] = False
    mask[25:35, 25:45] = True  # touches the other at a corner
    polygons = mask_polygons(mask)
    assert [len(one) for one in polygons] == [8, 8]
    assert sum(map(enclosed_area, polygons)) == 400 + 200


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [H, W], "counts": [5, 5]}, "runs cover 10 pixels, and its size is 64 x 48"),
        ({"size": [H], "counts": [5]}, r"RLE of size \[48\]"),
        ({"size": [10**6, 10**6], "counts": [5]}, "expected at most 100000000"),
        ({"size": [H, W], "counts": "\x01"}, "no digit"),
        ({"size": [H, W], "counts": None}, "counts are None"),
        ([[1, 2, 3]], "x and y of three points or more"),
        ([[1, 2, 3, 4, 5, "a"]], "x and y of three points or more"),
        ("polygon", "expected a list of polygons, or an RLE"),
    ],
)
def test_segmentations_that_are_none_are_named(file, rle, message):
    with pytest.raises(DataError, match=rf"boxes.json: annotations\[0\].*{message}"):
        Coco(file([{"segmentation": rle}]), "<OD>")


def test_degenerate_boxes_are_left_out_counted_and_said(file):
    given = ([30, 30, -20, -20], [3, 3, 0, 5], [-5, -5, 20, 20], [60, 40, 20, 20], [70, 1, 5, 5])
    source = Coco(file([{"bbox": box} for box in given]), "<OD>")
    near([("cat", [0, 0, 15, 15]), ("cat", [60, 40, 64, 48])], boxes(source))
    notes = "\n".join(source.notes)
    assert "1 of 5 annotations have a negative width or height and are left out, such as" in notes
    assert "1 of 5 annotations have a width or height of 0" in notes
    assert "1 of 5 annotations lie outside of their images" in notes
    assert "2 boxes leave their images and are cut at the edges" in notes


def test_a_file_whose_boxes_are_all_left_out_is_refused(file):
    with pytest.raises(DataError, match="has no annotations for <OD>"):
        Coco(file([{"bbox": [3, 3, 0, 5]}]), "<OD>")


@pytest.mark.parametrize(
    ("annotation", "parts", "message"),
    [
        ({"bbox": [1, 2, float("nan"), 4]}, {}, r"annotations\[0\] .* expected four finite"),
        ({"bbox": ["1", "2", "3", "4"]}, {}, r"annotations\[0\] .* expected four finite"),
        ({"bbox": [1, 2, 10**400, 4]}, {}, r"annotations\[0\] .* expected four finite"),
        ({}, {}, "neither a `bbox` nor a `segmentation`"),
        (
            {"bbox": [1, 2, 3, 4]},
            {"images": [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}]},
            "two images have the id 1, 'a.png' and 'b.png'",
        ),
        (
            {"bbox": [1, 2, 3, 4]},
            {"categories": [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]},
            "two categories have the id 1, 'cat' and 'dog'",
        ),
        (
            {"bbox": [1, 2, 3, 4]},
            {"categories": [{"id": 1, "name": "a</s>b"}]},
            "the label 'a</s>b' would not be read back",
        ),
        ({"bbox": [1, 2, 3, 4], "iscrowd": "no"}, {}, "iscrowd of .* 'no', expected 0 or 1"),
    ],
)
def test_what_means_two_things_or_none_is_named(file, annotation, parts, message):
    with pytest.raises(DataError, match=rf"boxes.json: .*{message}"):
        Coco(file([annotation], **parts), "<OD>")


def test_a_category_listed_twice_is_one(file):
    names = [{"id": 1, "name": "cat"}, {"id": 1, "name": "cat"}, {"id": 7, "name": "cat"}]
    path = file(
        [{"bbox": [1, 2, 3, 4]}, {"category_id": 7, "bbox": [9, 9, 9, 9]}], categories=names
    )
    source = Coco(path, "<OPEN_VOCABULARY_DETECTION>")
    assert len(source) == 1
    assert len(source[0].labels["bboxes"]) == 2
    assert "3 categories are called 'cat' and count as one" in source.notes[0]


def test_a_byte_order_mark_is_none_of_the_file(file):
    path = file([{"bbox": [1, 1, 40, 40]}])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    near([("cat", [1, 1, 41, 41])], boxes(Coco(path, "<OD>")))


@needs_shared
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("coco_bom", [[("cat", [1, 1, 41, 41])]]),
        ("coco_degenerate", [[("dog", [0, 0, 15, 15]), ("cat", [60, 40, 64, 48])]]),
        ("coco_dup_ids", "two images have the id 0"),
        ("coco_no_bbox", [[("cat", [10, 10, 30, 30])], [("dog", [5, 5, 25, 25])]]),
        (
            "coco_shares_over",
            [[("cat", [9.6, 9.6, 30.08, 29.76])], [("dog", [0, 0, 64, 24])]],
        ),
    ],
)
def test_files_from_the_field(name, expected):
    path = shared_path("..", "field", name, "_annotations.coco.json")
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            Coco(path, "<OD>")
        return
    source = Coco(path, "<OD>")
    for index, found in enumerate(expected):
        near(found, boxes(source, index))


def opened(path, **settings):
    return open_data((CocoConfig(path=str(path), **settings),))


FOUR = [{"bbox": [x, y, s, s]} for x, y, s in ((40, 2, 8), (2, 30, 12), (20, 20, 4), (30, 5, 2))]


@pytest.mark.parametrize(
    ("order", "lefts"),
    [
        ("as_annotated", [40, 2, 20, 30]),
        ("left_to_right", [2, 20, 30, 40]),
        ("top_to_bottom", [40, 30, 20, 2]),
        ("area", [2, 40, 20, 30]),
    ],
)
def test_things_come_in_the_order_of_the_setting(file, order, lefts):
    ((_, source, _),) = opened(file(FOUR), order=order).train
    assert [round(box[0]) for _, box in boxes(source)] == lefts


def test_by_default_things_come_in_another_order_in_each_epoch(file):
    """And in the same one for the same seed, epoch and row, so that a resumed run goes on."""
    sources = opened(file(FOUR)).train

    def targets():
        stream = DataLoader(sources=sources, preprocessor=ROW, batch_size=2, seed=3)
        texts = []
        for step in range(6):
            batch = stream.batch(step)
            rows = batch.labels.reshape(2, -1)
            (row,) = (row for row, name in zip(rows, batch.ids, strict=True) if name.endswith(":0"))
            texts.append(
                ROW.tokenizer.decode([token for token in row.tolist() if token >= 0][1:-1])
            )
        return texts

    first = targets()
    assert len(set(first)) > 3
    assert len({tuple(sorted(parse(one, "<OD>", (W, H))["<OD>"]["bboxes"], key=str)[0])
                for one in first}) == 1  # fmt: skip
    assert targets() == first


def test_notes_of_a_run_are_those_of_its_sources(tmp_path):
    path = written(tmp_path / "own.json", "two categories of one name")
    sources = opened(path, tasks=("<OD>", "<REGION_TO_CATEGORY>"), image_root=SCENES)
    (note,) = sources.notes
    assert "own.json: 2 categories are called 'word' and count as one" in note
    assert base()["categories"][-1]["name"] == "word"


def test_a_location_that_is_no_token_is_not_learnt(tmp_path):
    picture = tmp_path / "a.png"
    Image.new("RGB", (W, H)).save(picture)
    text = "cat<loc_1000><loc_2><loc_3><loc_4>"
    example = Example(id="1", image=picture, task="<OD>", prompt="", labels=text)
    with pytest.raises(ValueError, match="<loc_1000>, which is no token"):
        ROW.of_example(example, np.random.default_rng(0))


@pytest.mark.parametrize(("order", "said"), [("as_annotated", 1), ("random", 0)])
def test_rows_of_text_are_told_of_their_order(tmp_path, order, said):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"image": "a.png", "prefix": "<OD>", "suffix": "cat"}))
    config = JsonlConfig(path=str(path), order=order)
    assert sum("order: random" in note for note in open_data((config,)).notes) == said
