"""Results in the hands of pycocotools, supervision and json."""

import contextlib
import io
import json
import sys
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from florence_jax.results.coco import to_coco_dataset, to_coco_results
from florence_jax.results.instances import Instance, instances
from florence_jax.results.rows import result_to_json
from florence_jax.results.supervision import to_supervision
from tests.shared_data import needs_shared, shared_path

SIZE = (100, 80)
BOXES = {
    "<OD>": {
        "bboxes": [[10.5, 20, 50, 60], [0, 0, 100, 80]],
        "labels": ["car", "door"],
        "scores": [0.9, 0.25],
    }
}
QUADS = {
    "<OCR_WITH_REGION>": {
        "quad_boxes": [[20, 20, 60, 40, 50, 60, 10, 50], [4, 4, 8, 4, 8, 8, 4, 8]],
        "labels": ["some text", "other"],
        "scores": [0.5, 0.75],
    }
}
POLYGONS = {
    "<REFERRING_EXPRESSION_SEGMENTATION>": {
        "polygons": [
            [[10, 10, 30, 10, 30, 30, 10, 30], [50, 50, 60, 50, 60, 60], [1, 1, 99, 79]],
            [[5, 5]],  # encloses nothing
        ],
        "labels": ["the car", ""],
        "scores": [0.8, 0.1],
    }
}
MIXED = {
    "<OPEN_VOCABULARY_DETECTION>": {
        "bboxes": [[1, 2, 3, 5]],
        "bboxes_labels": ["cat"],
        "bboxes_scores": [0.6],
        "polygons": [[[10, 10, 30, 10, 30, 30]]],
        "polygons_labels": ["dog"],
        "polygons_scores": [0.7],
    }
}
REGION = {"<REGION_TO_CATEGORY>": "car<loc_100><loc_200><loc_500><loc_600>"}
CAPTION = {"<CAPTION>": "A car."}


@pytest.fixture
def sv():
    with warnings.catch_warnings():
        # Without OpenCV supervision warns that it falls back to numpy, which is all we need.
        warnings.simplefilter("ignore")
        return pytest.importorskip("supervision", reason="needs supervision (extra `test`)")


@pytest.fixture
def coco():
    return pytest.importorskip("pycocotools.coco", reason="needs pycocotools (extra `test`)")


# --- instances -----------------------------------------------------------------------------------


def test_instances_of_every_form():
    def summary(result):
        (value,) = result.values()
        return [(i.kind, i.label, i.score, i.bounds()) for i in instances(value, SIZE)]

    assert summary(BOXES)[0] == ("box", "car", 0.9, (10.5, 20, 50, 60))
    assert summary(QUADS)[0] == ("quad", "some text", 0.5, (10, 20, 60, 60))
    # A part of two points does not widen the box of its instance.
    assert summary(POLYGONS)[0] == ("polygons", "the car", 0.8, (10, 10, 60, 60))
    assert [s[:3] for s in summary(MIXED)] == [("box", "cat", 0.6), ("polygons", "dog", 0.7)]
    ((kind, label, score, bounds),) = summary(REGION)
    assert (kind, label, score) == ("box", "car", None)
    assert bounds == pytest.approx((10.05, 16.04, 50.05, 48.04))  # bin centres
    assert summary(CAPTION) == []


def test_scores_and_labels_may_be_absent():
    (instance,) = instances({"bboxes": [[3, 4, 1, 2]]})
    assert (instance.label, instance.score, instance.bounds()) == ("", None, (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"bboxes": [[1, 2, 3]], "labels": ["a"]}, "3 coordinates, not 4"),
        ({"quad_boxes": [[1, 2, 3, 4]], "labels": ["a"]}, "4 coordinates, not 8"),
        ({"bboxes": [[1, 2, 3, 4]], "labels": []}, "1 entries but labels has 0"),
        ({"bboxes": [[1, 2, 3, 4]], "scores": [1, 1]}, "1 entries but scores has 2"),
        ({"labels": []}, "no bboxes"),
        ([1, 2], "a str or a mapping, not list"),
        (REGION["<REGION_TO_CATEGORY>"], "image_size"),
    ],
)
def test_malformed_values_are_named(value, message):
    with pytest.raises(ValueError, match=message):
        instances(value)


# --- COCO ----------------------------------------------------------------------------------------


def test_coco_results_have_width_and_height():
    ids = {"car": 3, "door": 7}
    assert to_coco_results([BOXES], [42], ids) == [
        {"image_id": 42, "category_id": 3, "bbox": [10.5, 20, 39.5, 40], "score": 0.9},
        {"image_id": 42, "category_id": 7, "bbox": [0, 0, 100, 80], "score": 0.25},
    ]


def test_coco_results_of_polygons_and_quads():
    polygon, quad, *_ = to_coco_results([POLYGONS, QUADS], [1, 2], 1)
    assert polygon["segmentation"] == [
        [10, 10, 30, 10, 30, 30, 10, 30],
        [50, 50, 60, 50, 60, 60],
    ]
    assert polygon["bbox"] == [10, 10, 50, 50]
    assert quad["segmentation"] == [[20, 20, 60, 40, 50, 60, 10, 50]]


def test_coco_results_without_scores_and_from_text():
    records = to_coco_results(
        [CAPTION, REGION], [1, 2], {"car": 5}, image_sizes=[SIZE, SIZE], default_score=0.5
    )
    assert [(r["image_id"], r["category_id"], r["score"]) for r in records] == [(2, 5, 0.5)]


def test_coco_results_with_labels_outside_the_categories():
    with pytest.raises(ValueError, match="image 42: label 'door'"):
        to_coco_results([BOXES], [42], {"car": 1})
    assert len(to_coco_results([BOXES], [42], {"car": 1}, on_unknown_label="skip")) == 1
    with pytest.raises(ValueError, match="on_unknown_label"):
        to_coco_results([BOXES], [42], {"car": 1}, on_unknown_label="ignore")  # type: ignore


def test_coco_results_refuse_what_is_not_finite():
    bad_box = {"<OD>": {"bboxes": [[0, 0, float("nan"), 1]], "labels": ["car"]}}
    bad_score = {"<OD>": {"bboxes": [[0, 0, 1, 1]], "labels": ["car"], "scores": [float("inf")]}}
    for bad in (bad_box, bad_score):
        with pytest.raises(ValueError, match="image 7, <OD>: 'car' is not finite"):
            to_coco_results([bad], [7], 1)


def test_one_id_for_each_result():
    with pytest.raises(ValueError, match="2 results, 1 image_ids"):
        to_coco_results([BOXES, BOXES], [1], 1)


ALL = [BOXES, QUADS, POLYGONS, MIXED, REGION, CAPTION]
NAMES = [f"{n}.jpg" for n in range(len(ALL))]


def test_coco_dataset_fields():
    dataset = to_coco_dataset(ALL, NAMES, [SIZE] * len(ALL))
    assert dataset["images"][1] == {"id": 2, "file_name": "1.jpg", "width": 100, "height": 80}
    assert [c["id"] for c in dataset["categories"]] == list(range(1, 8))
    assert [a["id"] for a in dataset["annotations"]] == list(range(1, 9))
    box, _, quad, _, polygons, *_ = dataset["annotations"]
    assert (box["area"], box["score"], box["iscrowd"]) == (39.5 * 40, 0.9, 0)
    assert box["segmentation"] == []
    assert quad["area"] == (-400 + 1600 + 1900 - 800) / 2  # cross products, by hand
    assert polygons["area"] == 20 * 20 + 50
    assert "score" not in dataset["annotations"][-1]  # the region answer has none
    assert json.loads(json.dumps(dataset, allow_nan=False)) == dataset


def test_coco_dataset_names_the_empty_label_and_keeps_given_ids():
    proposal = {"<REGION_PROPOSAL>": {"bboxes": [[1, 2, 3, 4]], "labels": [""]}}
    dataset = to_coco_dataset([proposal], ["a.jpg"], [SIZE])
    assert dataset["categories"] == [{"id": 1, "name": "object", "supercategory": ""}]
    dataset = to_coco_dataset([BOXES], ["a.jpg"], [SIZE], category_ids={"door": 9, "car": 4})
    assert [a["category_id"] for a in dataset["annotations"]] == [4, 9]
    with pytest.raises(ValueError, match="door"):
        to_coco_dataset([BOXES], ["a.jpg"], [SIZE], category_ids={"car": 4})


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_pycocotools_scores_results_against_their_own_dataset_as_perfect(coco, tmp_path, kind):
    """The file is read back, and a result evaluated against its own annotations has AP 1."""
    from pycocotools.cocoeval import COCOeval

    results = [BOXES, QUADS] if kind == "bbox" else [QUADS, POLYGONS]
    dataset = to_coco_dataset(results, ["a.jpg", "b.jpg"], [SIZE] * 2)
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(dataset))
    ids = {c["name"]: c["id"] for c in dataset["categories"]}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO(str(path))
        found = truth.loadRes(to_coco_results(results, [1, 2], ids))
        evaluation = COCOeval(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_pycocotools_area_of_a_polygon_is_ours(coco):
    """To 10 %: pycocotools counts pixels of the mask, whose edges are inclusive."""
    from pycocotools import mask

    dataset = to_coco_dataset([POLYGONS], ["a.jpg"], [SIZE])
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = coco.COCO()
        loaded.dataset = dataset
        loaded.createIndex()
    (annotation,) = dataset["annotations"]
    assert mask.area(loaded.annToRLE(annotation)) == pytest.approx(annotation["area"], rel=0.1)


# --- supervision ---------------------------------------------------------------------------------

SUPERVISION_CASES = (
    [
        case
        for case in json.loads(shared_path("expected_postprocess.json").read_text())["cases"]
        if case.get("kind") == "parsed_to_detections"
    ]
    if shared_path("expected_postprocess.json").is_file()
    else []
)


def _compare_with_pinned(detections, expected):
    np.testing.assert_allclose(detections.xyxy, np.reshape(expected["xyxy"], (-1, 4)))
    assert detections.data["class_name"].tolist() == expected["labels"]
    if "obb" in expected:
        np.testing.assert_allclose(detections.data["xyxyxyxy"], expected["obb"])


@needs_shared
@pytest.mark.parametrize("case", SUPERVISION_CASES, ids=lambda case: case["id"])
def test_pinned_detections(sv, case):
    size = tuple(case["resolution_wh"])
    _compare_with_pinned(to_supervision(case["parsed"], size), case["expected"])
    theirs = sv.Detections.from_vlm(sv.VLM.FLORENCE_2, case["parsed"], resolution_wh=size)
    _compare_with_pinned(theirs, case["expected"])


@pytest.mark.parametrize(
    "task",
    [
        "<OD>",
        "<CAPTION_TO_PHRASE_GROUNDING>",
        "<DENSE_REGION_CAPTION>",
        "<REGION_PROPOSAL>",
        "<OCR_WITH_REGION>",
        "<REFERRING_EXPRESSION_SEGMENTATION>",
        "<REGION_TO_SEGMENTATION>",
        "<OPEN_VOCABULARY_DETECTION>",
        "<REGION_TO_CATEGORY>",
        "<REGION_TO_DESCRIPTION>",
    ],
)
def test_supervision_reads_our_results_unchanged(sv, task):
    """Every task that `Detections.from_vlm` knows, with scores and all; boxes and names as ours.

    Tolerance: half a bin (0.05 px here) for region answers, whose bins it takes as lower edges.
    """
    form = {
        "<OCR_WITH_REGION>": QUADS,
        "<REFERRING_EXPRESSION_SEGMENTATION>": POLYGONS,
        "<REGION_TO_SEGMENTATION>": POLYGONS,
        "<OPEN_VOCABULARY_DETECTION>": MIXED,
        "<REGION_TO_CATEGORY>": REGION,
        "<REGION_TO_DESCRIPTION>": REGION,
    }.get(task, BOXES)
    result = {task: next(iter(form.values()))}
    theirs = sv.Detections.from_vlm(sv.VLM.FLORENCE_2, result, resolution_wh=SIZE)
    ours = to_supervision(result, SIZE)
    if form is MIXED:  # it reads the boxes alone
        ours = ours[:1]
    np.testing.assert_allclose(ours.xyxy, theirs.xyxy, atol=0.051)
    if theirs.data.get("class_name") is not None:
        assert ours.data["class_name"].tolist() == theirs.data["class_name"].tolist()
    if form is QUADS:
        np.testing.assert_allclose(ours.data["xyxyxyxy"], theirs.data["xyxyxyxy"])
    if form is POLYGONS:
        np.testing.assert_array_equal(ours.mask, theirs.mask)


def test_supervision_gets_scores_and_class_ids(sv):
    detections = to_supervision(BOXES, SIZE)
    np.testing.assert_allclose(detections.confidence, [0.9, 0.25])
    assert detections.class_id.tolist() == [0, 1]
    assert detections.mask is None
    assert to_supervision(REGION, SIZE).confidence is None


def test_supervision_masks_of_boxes_and_polygons_together(sv):
    detections = to_supervision(MIXED, SIZE)
    assert detections.mask.shape == (2, 80, 100)
    box, polygon = detections.mask
    assert box[2:6, 1:4].all()
    assert box.sum() == 4 * 3
    assert polygon[12, 25]
    assert not polygon[28, 12]


@pytest.mark.parametrize("task", ["<OD>", "<OCR_WITH_REGION>", "<REGION_TO_SEGMENTATION>"])
def test_nothing_found_is_empty(sv, task):
    key = {"<OD>": "bboxes", "<OCR_WITH_REGION>": "quad_boxes"}.get(task, "polygons")
    for result in ({task: {key: [], "labels": []}}, CAPTION):
        assert len(to_supervision(result, SIZE)) == 0
    theirs = sv.Detections.from_vlm(
        sv.VLM.FLORENCE_2, {task: {key: [], "labels": []}}, resolution_wh=SIZE
    )
    assert len(theirs) == 0


def test_supervision_missing_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        to_supervision(BOXES, SIZE)


# --- JSON ----------------------------------------------------------------------------------------


def test_json_safe_types():
    record = {
        "id": np.str_("a.jpg"),
        "ok": np.bool_(True),
        "n": np.int64(3),
        "none": None,
        "text": "Ωμέγα\n",
        np.str_("<OD>"): {
            "bboxes": np.array([[1, 2, 3, 4]], np.float32),
            "labels": ("car",),
            "scores": [np.float16(0.5), np.float64(0.25), jnp.bfloat16(0.5), jnp.float32(0.75)],
            "bf16": jnp.array([0.5], jnp.bfloat16),
        },
    }
    safe = result_to_json(record)
    assert safe == {
        "id": "a.jpg",
        "ok": True,
        "n": 3,
        "none": None,
        "text": "Ωμέγα\n",
        "<OD>": {
            "bboxes": [[1, 2, 3, 4]],
            "labels": ["car"],
            "scores": [0.5, 0.25, 0.5, 0.75],
            "bf16": [0.5],
        },
    }
    assert json.loads(json.dumps(safe, allow_nan=False)) == safe
    assert type(safe["id"]) is str
    assert type(safe["ok"]) is bool
    assert type(safe["<OD>"]["scores"][1]) is float


@pytest.mark.parametrize("bad", [float("nan"), np.float32("inf"), np.array([1, -np.inf])])
def test_json_refuses_nan_and_infinity_by_place(bad):
    with pytest.raises(ValueError, match=r"record\['<OD>'\]\['scores'\]\[1\].* JSON cannot hold"):
        result_to_json({"<OD>": {"scores": [0.5, bad]}})


@pytest.mark.parametrize("bad", [{1: "a"}, {"a": {1, 2}}, [b"bytes"], Instance, {"a": 1j}])
def test_json_refuses_other_types(bad):
    with pytest.raises(TypeError, match="record"):
        result_to_json(bad)
