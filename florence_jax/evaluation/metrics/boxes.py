"""Metrics of boxes and masks, in pixels: IoU, matching, recall@1, AP, mIoU and oIoU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from florence_jax.evaluation.metrics.coco import import_pycocotools


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


Parts = Sequence[Sequence[float]]

# `mask_iou` draws on a canvas this many times as fine, so that thin shapes are not rounded away.
_FINE = 2


@dataclass(frozen=True, kw_only=True)
class MaskOverlap:
    """Counts of the pixels that two masks share, and of those that either covers."""

    intersection: int
    union: int

    @property
    def iou(self) -> float:
        """Intersection over union; 0 if both masks are empty."""
        return self.intersection / self.union if self.union else 0.0


def mask_overlap(truth: np.ndarray, answer: np.ndarray) -> MaskOverlap:
    """The overlap of two masks, bool[H, W] each."""
    return MaskOverlap(
        intersection=int(np.count_nonzero(truth & answer)),
        union=int(np.count_nonzero(truth | answer)),
    )


def mean_and_overall_iou(areas: Sequence[MaskOverlap]) -> tuple[float, float]:
    """(mIoU, oIoU) of referring expression segmentation, 0..1: the mean of each pair's overlap, and
    the overlap of all pixels pooled, in which large objects count more (also called cIoU).

    Raises:
        ValueError: there is no pair.
    """
    if not areas:
        raise ValueError("there is no pair of masks to compare: give at least one")
    mean = sum(pair.iou for pair in areas) / len(areas)
    union = sum(pair.union for pair in areas)
    return mean, sum(pair.intersection for pair in areas) / union if union else 0.0


def coco_mask(segmentation: Any, image_size: tuple[int, int]) -> np.ndarray:
    """A segmentation in any of COCO's forms as a mask, drawn as pycocotools draws it.

    Args:
        segmentation: a list of polygons, or an RLE, compressed or not. Polygons of fewer than
            three points cover nothing.
        image_size: (width, height) in pixels.

    Returns:
        bool[H, W].

    Raises:
        ModuleNotFoundError: pycocotools is not installed.
    """
    import_pycocotools()
    from pycocotools import mask

    encoded: Any
    width, height = image_size
    if not isinstance(segmentation, Mapping):
        segmentation = [part for part in segmentation if len(part) >= 6]
        if not segmentation:
            return np.zeros((height, width), bool)
        encoded = mask.merge(mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        encoded = mask.frPyObjects(dict(segmentation), height, width)  # pyright: ignore
    else:
        encoded = segmentation
    with warnings.catch_warnings():
        # Its arrays do not know numpy 2's `copy` yet.
        warnings.simplefilter("ignore", DeprecationWarning)
        return mask.decode(encoded).astype(bool)


def mask_iou(a: Parts, b: Parts, image_size: Sequence[float]) -> float:
    """Intersection over union of two sets of polygons; 0 if both are empty."""
    return mask_overlap(*(_fine_mask(parts, image_size) for parts in (a, b))).iou


def _fine_mask(parts: Parts, image_size: Sequence[float]) -> np.ndarray:
    width, height = (round(extent * _FINE) for extent in image_size)
    mask = Image.new("1", (width, height))
    canvas = ImageDraw.Draw(mask)
    for part in parts:
        points = np.floor(np.asarray(part, float).reshape(-1, 2) * _FINE).tolist()
        if len(points) >= 3:
            canvas.polygon(list(map(tuple, points)), fill=1)
    return np.asarray(mask)
