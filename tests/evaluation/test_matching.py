"""Average precision against pycocotools, overlaps against arithmetic."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florence_jax.evaluation.metrics import (
    Detection,
    box_iou,
    mask_iou,
    matched,
    mean_average_precision,
)


def random_pictures(seed, count=12):
    """Truth and noisy answers: boxes moved, labels changed, some left out, some invented."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        corners = rng.uniform(0, 150, (rng.integers(0, 6), 2))
        boxes = np.concatenate([corners, corners + rng.uniform(40, 90, corners.shape)], axis=1)
        truth = [Detection(label="abc"[rng.integers(3)], shape=box.tolist()) for box in boxes]
        answer = []
        for true in truth:
            for _ in range(rng.integers(0, 3)):
                moved = np.array(true.shape) + rng.normal(0, 6, 4)
                label = true.label if rng.random() < 0.8 else "abcd"[rng.integers(4)]
                answer.append(
                    Detection(label=label, shape=moved.tolist(), score=float(rng.random()))
                )
        pairs.append((truth, answer))
    return pairs


def coco_average_precision(pairs, least):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    names = sorted({found.label for pair in pairs for side in pair for found in side})
    annotations, results = [], []
    for image, (truth, answer) in enumerate(pairs, start=1):
        for rows, side in ((annotations, truth), (results, answer)):
            for found in side:
                x0, y0, x1, y1 = found.shape
                rows.append(
                    {
                        "id": len(rows) + 1,
                        "image_id": image,
                        "category_id": names.index(found.label) + 1,
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": (x1 - x0) * (y1 - y0),
                        "iscrowd": 0,
                        "score": found.score,
                    }
                )
    coco = COCO()
    coco.dataset = {
        "images": [{"id": n + 1} for n in range(len(pairs))],
        "annotations": annotations,
        "categories": [{"id": n + 1, "name": name} for n, name in enumerate(names)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.params.iouThrs = np.array([least])
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][0, :, :, 0, -1]
    # A class that the truth does not have is -1 there.
    return precision[precision > -1].mean()


@pytest.mark.parametrize("least", [0.3, 0.5, 0.75])
@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_cocos(seed, least):
    pairs = random_pictures(seed)
    value = mean_average_precision(pairs, least)
    assert 0.02 < value < 0.95
    assert value == pytest.approx(coco_average_precision(pairs, least), abs=1e-9)


def test_answers_without_confidences_rank_as_they_stand():
    one, two = (Detection(label="a", shape=box) for box in ((0, 0, 10, 10), (20, 20, 30, 30)))
    wrong = Detection(label="a", shape=(50, 50, 60, 60))
    # Precision 1, 1 up to recall 1; then 1/2, 2/3; then 1 up to recall 1/2 and 2/3 to 1.
    assert mean_average_precision([([one, two], [one, two, wrong])]) == 1.0
    assert mean_average_precision([([one, two], [wrong, one, two])]) == pytest.approx(2 / 3)
    mixed = mean_average_precision([([one, two], [one, wrong, two])])
    assert mixed == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_nothing_to_find_or_nothing_found():
    one = Detection(label="a", shape=(0, 0, 10, 10))
    assert mean_average_precision([([], [])]) == 0.0
    assert mean_average_precision([([], [one])]) == 0.0
    assert mean_average_precision([([one], [])]) == 0.0


def test_a_true_box_is_found_once():
    one = Detection(label="a", shape=(0, 0, 10, 10))
    assert matched([one], [one, one]) == [True, False]
    sure = Detection(label="a", shape=(0, 0, 10, 10), score=2.0)
    assert matched([one], [one, sure]) == [False, True]
    assert matched([one], [Detection(label="b", shape=one.shape)]) == [False]


def test_the_larger_overlap_is_taken():
    near, far = (Detection(label="a", shape=box) for box in ((0, 0, 10, 10), (0, 0, 10, 14)))
    found = Detection(label="a", shape=(0, 0, 10, 13))
    assert matched([near, far], [found, Detection(label="a", shape=(0, 0, 10, 8))]) == [True, True]


boxes = st.tuples(*[st.integers(0, 40)] * 4).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]) + 1, max(b[1], b[3]) + 1)
)


@settings(max_examples=100)
@given(boxes, boxes)
def test_box_overlap_counts_pixels(a, b):
    first, second = np.zeros((2, 45, 45), bool)
    first[a[1] : a[3], a[0] : a[2]] = True
    second[b[1] : b[3], b[0] : b[2]] = True
    expected = (first & second).sum() / (first | second).sum()
    assert box_iou(a, b) == pytest.approx(expected)


def rectangle(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def test_mask_overlap():
    size = (200, 200)
    whole = rectangle(20, 20, 180, 180)
    halves = [rectangle(20, 20, 100, 180), rectangle(100, 20, 180, 180)]
    assert mask_iou([whole], [whole], size) == 1.0
    assert mask_iou([whole], halves, size) == pytest.approx(1.0, abs=0.01)
    assert mask_iou([whole], halves[:1], size) == pytest.approx(0.5, abs=0.01)
    assert mask_iou([whole], [rectangle(0, 0, 10, 10)], size) == 0.0
    assert mask_iou([whole], [], size) == 0.0
    assert mask_iou([], [], size) == 0.0
    assert mask_iou([whole], [[1.0, 2.0]], size) == 0.0
    # What is written twice, or beyond the picture, is not counted twice, or at all.
    assert mask_iou([whole], [whole, whole], size) == 1.0
    beyond = [rectangle(20, 20, 400, 180)]
    assert mask_iou([rectangle(20, 20, 200, 180)], beyond, size) == pytest.approx(1.0, abs=0.01)
