"""Box metrics: IoU, recall@1, matching and average precision. Coordinates are pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Detection:
    """A shape of an answer: its label, its coordinates as `parse` gives them, its confidence."""

    label: str
    shape: Sequence[float]
    score: float = 1.0


Overlap = Callable[[Sequence[float], Sequence[float]], float]


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1); 0 where a box has no area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return shared / (areas - shared)


def recall_at_1(
    truth: Sequence[Sequence[float]],
    answer: Sequence[Sequence[float]],
    *,
    least: float = 0.5,
    merged: bool = False,
) -> bool:
    """Whether the first box of an answer to one phrase is right.

    R@1 is the share of such phrases; accuracy@0.5 of referring expressions is the same with one
    true box.

    Args:
        truth: the phrase's true boxes.
        answer: boxes, the most confident first; none of them is wrong.
        least: the overlap from which a box is right.
        merged: compare with the box around all true boxes; by default with any one of them, as
            MDETR and GLIP count.

    Raises:
        ValueError: the phrase has no true box.
    """
    if not len(truth):
        raise ValueError("a phrase without a true box cannot be judged: leave it out")
    if not len(answer):
        return False
    boxes = [_around(truth)] if merged else truth
    return max(box_iou(box, answer[0]) for box in boxes) >= least


def matched(
    truth: Sequence[Detection],
    answer: Sequence[Detection],
    overlap: Overlap = box_iou,
    least: float = 0.5,
) -> list[bool]:
    """Match the shapes of an answer, the most confident first, with those of the truth.

    A shape is right if a true shape that is still free has its label and overlaps it by at least
    `least`; of several, it takes the one with the largest overlap, as in COCO's evaluation.

    Returns:
        One bool per shape of `answer`, in the order of `answer`.
    """
    free = list(truth)
    right = [False] * len(answer)
    for index in sorted(range(len(answer)), key=lambda index: -answer[index].score):
        found = answer[index]
        overlaps = [
            overlap(true.shape, found.shape) if true.label == found.label else 0.0 for true in free
        ]
        if overlaps and max(overlaps) >= least:
            del free[overlaps.index(max(overlaps))]
            right[index] = True
    return right


def mean_average_precision(
    pairs: Sequence[tuple[Sequence[Detection], Sequence[Detection]]], least: float = 0.5
) -> float:
    """Mean over the classes of the truth of COCO's average precision at one overlap.

    Args:
        pairs: (truth, answer) of each image.
        least: the overlap from which a box is right.

    Returns:
        0..1; 0 where the truth holds no box. Precision is read at 101 recalls, as in COCO.
    """
    classes = sorted({true.label for truth, _ in pairs for true in truth})
    if not classes:
        return 0.0
    return float(np.mean([_average_precision(pairs, label, least) for label in classes]))


def _average_precision(
    pairs: Sequence[tuple[Sequence[Detection], Sequence[Detection]]], label: str, least: float
) -> float:
    scores, right, total = [], [], 0
    for truth, answer in pairs:
        true = [found for found in truth if found.label == label]
        given = [found for found in answer if found.label == label]
        total += len(true)
        right += matched(true, given, least=least)
        scores += [found.score for found in given]
    order = np.argsort(-np.array(scores), kind="stable")
    hits = np.cumsum(np.array(right, float)[order])
    if not len(hits):
        return 0.0
    recall, precision = hits / total, hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return float(np.append(envelope, 0.0)[np.minimum(at, len(envelope))].mean())


def _around(boxes: Sequence[Sequence[float]]) -> list[float]:
    corners = np.asarray(boxes, float)
    return [*corners[:, :2].min(axis=0), *corners[:, 2:].max(axis=0)]
