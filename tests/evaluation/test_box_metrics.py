"""COCO's average precision, R@1 and masks, against documented figures and arithmetic."""

import json

import numpy as np
import pytest

from florence_jax.evaluation.metrics import (
    coco_average_precision,
    coco_mask,
    mask_overlap,
    mean_and_overall_iou,
    recall_at_1,
)
from florence_jax.evaluation.metrics.boxes import COCO_FIGURES
from tests.shared_data import needs_shared, shared_path


def shared_json(name):
    return json.loads(shared_path("metrics", "coco_det", name).read_text())


@needs_shared
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_cocos_own_figures(kind):
    truth = shared_json("instances_val2014_100.json")
    results = shared_json(f"instances_val2014_fake{kind}100_results.json")
    figures = coco_average_precision(truth, results, kind=kind)
    documented = shared_json("expected_ap.json")[f"{kind}_documented"]
    assert tuple(figures) == COCO_FIGURES
    assert list(figures.values()) == pytest.approx(documented, abs=1e-6)
    # What was given is as it was.
    assert truth == shared_json("instances_val2014_100.json")


@needs_shared
def test_without_scores_every_box_is_as_sure_as_the_next():
    truth = shared_json("instances_val2014_100.json")
    results = shared_json("instances_val2014_fakebbox100_results.json")
    unsure = coco_average_precision(truth, results, use_scores=False)
    assert unsure["AP"] == pytest.approx(0.5138199819, abs=1e-9)  # 0.504581 with them
    assert unsure["AR_100"] == pytest.approx(0.595353, abs=1e-6)  # as with them


def truth_of(*boxes):
    annotations = [
        {
            "id": n,
            "image_id": image,
            "category_id": 1,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for n, (image, box) in enumerate(boxes, start=1)
    ]
    images = [{"id": image, "width": 100, "height": 100} for image in (1, 2)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}


def test_images_that_were_not_asked_about_do_not_count():
    truth = truth_of((1, [0, 0, 50, 50]), (2, [0, 0, 50, 50]))
    found = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 50], "score": 0.5}]
    assert coco_average_precision(truth, found)["AP"] == pytest.approx(0.5, abs=0.01)
    assert coco_average_precision(truth, found, image_ids=[1])["AP"] == pytest.approx(1.0)
    assert coco_average_precision(truth, [])["AP"] == 0.0
    with pytest.raises(ValueError, match="results for 1 images that the truth does not have"):
        coco_average_precision(truth, [{**found[0], "image_id": 9}])


def test_recall_looks_at_the_first_box():
    truth = [[0, 0, 10, 10], [20, 0, 30, 10]]
    assert recall_at_1(truth, [[20, 0, 30, 9], [50, 50, 60, 60]])
    assert not recall_at_1(truth, [[50, 50, 60, 60], [20, 0, 30, 10]])
    assert not recall_at_1(truth, [])
    assert recall_at_1(truth, [[0, 0, 10, 5]])  # exactly half
    assert not recall_at_1(truth, [[0, 0, 10, 4.99]])
    assert recall_at_1(truth, [[0, 0, 30, 10]], merged=True)
    assert not recall_at_1(truth, [[0, 0, 30, 10]])
    with pytest.raises(ValueError, match="without a true box"):
        recall_at_1([], [[0, 0, 1, 1]])


def test_masks_are_drawn_in_all_of_cocos_forms():
    square = [10, 10, 30, 10, 30, 30, 10, 30]
    mask = coco_mask([square, [0, 0, 1, 1]], (40, 50))
    assert mask.shape == (50, 40)
    assert mask.sum() == pytest.approx(400, rel=0.05)
    assert mask[20, 20]
    assert not mask[5, 5]
    # Columns first: 10 of 50 empty, then 5 set, then the rest.
    counts = {"size": [50, 40], "counts": [10, 5, 50 * 40 - 15]}
    plain = coco_mask(counts, (40, 50))
    assert plain.sum() == 5
    assert plain[10:15, 0].all()
    from pycocotools import mask as tools

    packed = tools.encode(np.asfortranarray(plain.astype(np.uint8)))
    assert (coco_mask(packed, (40, 50)) == plain).all()
    assert not coco_mask([], (40, 50)).any()


def test_mean_and_overall_overlap():
    one = np.zeros((10, 10), bool)
    one[:5] = True
    other = np.zeros((10, 10), bool)
    other[:, :5] = True
    small = np.zeros((10, 10), bool)
    small[0, 0] = True
    pairs = [
        mask_overlap(one, other),
        mask_overlap(small, small),
        mask_overlap(small, one & ~small),
    ]
    # 25 of 75, 1 of 1, 0 of 50.
    mean, overall = mean_and_overall_iou(pairs)
    assert mean == pytest.approx((25 / 75 + 1 + 0) / 3)
    assert overall == pytest.approx(26 / 126)
    assert mask_overlap(one & False, one & False).iou == 0.0
    with pytest.raises(ValueError, match="no pair of masks"):
        mean_and_overall_iou([])
