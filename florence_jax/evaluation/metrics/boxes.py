"""Metrics of boxes and masks, in pixels: IoU, matching, recall@1, mIoU, oIoU, COCO's AP and AR."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw

# In the order of `COCOeval.stats`.
_SIZES = ("small", "medium", "large")
COCO_FIGURES = (
    *("AP", "AP50", "AP75", *(f"AP_{size}" for size in _SIZES)),
    *("AR_1", "AR_10", "AR_100", *(f"AR_{size}" for size in _SIZES)),
)


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One shape of an answer: its label, its coordinates as `parse` gives them, its confidence."""

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
    """Whether the first box of an answer about one phrase is correct.

    R@1 is the fraction of phrases for which it is. Accuracy@0.5 of referring expressions is the
    same with one true box.

    Args:
        truth: the phrase's true boxes.
        answer: predicted boxes, the most confident first; an empty answer is wrong.
        least: the least IoU of a correct box.
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
    """Match predicted shapes with true ones, the most confident first.

    A predicted shape is correct if a true shape that is not matched yet has its label and an
    overlap of at least `least`. Of several, the one with the largest overlap is matched, as in
    COCO's evaluation.

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
    """COCO's average precision at one overlap, averaged over the classes of the truth.

    Args:
        pairs: (truth, answer) of each image.
        least: the least IoU of a correct box.

    Returns:
        0..1; 0 if the truth has no box. Precision is read at 101 recalls, as in COCO.
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

# Scale of the canvas on which `mask_iou` draws, so that thin shapes are not rounded away.
_FINE = 2


@dataclass(frozen=True, kw_only=True)
class MaskOverlap:
    """Number of pixels that two masks share, and that either covers."""

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
    """(mIoU, oIoU) of referring expression segmentation, 0..1.

    mIoU is the mean of each pair's IoU. oIoU (also called cIoU) pools the pixels of all pairs, so
    that large objects count more.

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
        # Its arrays do not support numpy 2's `copy` yet.
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


def coco_average_precision(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    kind: Literal["bbox", "segm"] = "bbox",
    image_ids: Iterable[int] | None = None,
    use_scores: bool = True,
) -> dict[str, float]:
    """The twelve figures of COCO detection, by the names of `COCO_FIGURES`.

    Args:
        truth: the content of an instances file: `images`, `annotations`, `categories`.
        results: detections in COCO's results format: `image_id`, `category_id`, `bbox` (x, y,
            width, height in pixels) or `segmentation` (RLE or polygons), `score`.
        kind: whether boxes or masks are compared.
        image_ids: the images that count; by default all of the truth.
        use_scores: False ranks each image's detections as they stand, as is done for a model
            without confidences: every score is 1.

    Returns:
        0..1 each, or -1 where the truth has nothing of that size.

    Raises:
        ModuleNotFoundError: pycocotools is not installed.
        ValueError: results for images that the truth does not have.
    """
    import_pycocotools()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    known = {image["id"] for image in truth["images"]}
    strangers = sorted({str(row["image_id"]) for row in results if row["image_id"] not in known})
    if strangers:
        raise ValueError(
            f"results for {len(strangers)} images that the truth does not have, such as "
            f"{strangers[0]}: take both from one split"
        )
    with contextlib.redirect_stdout(io.StringIO()):
        # pycocotools writes into what it is given.
        annotated = _indexed(COCO(), copy.deepcopy(dict(truth)))
        detected = annotated.loadRes(_rows(results, use_scores)) if results else _empty(annotated)
        evaluation = COCOeval(annotated, detected, kind)
        if image_ids is not None:
            evaluation.params.imgIds = sorted(set(image_ids))
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(COCO_FIGURES, map(float, evaluation.stats), strict=True))


def import_pycocotools() -> None:
    """Check that pycocotools can be imported.

    Raises:
        ModuleNotFoundError: it is missing or broken; the message says what to install.
    """
    try:
        import pycocotools.cocoeval  # noqa: F401
    # Compiled for another NumPy, it raises ValueError.
    except (ImportError, ValueError, AttributeError) as error:
        missing = isinstance(error, ModuleNotFoundError)
        raise ModuleNotFoundError(
            'boxes and masks are counted by pycocotools: pip install "florence-jax[evaluate]"'
            + ("" if missing else f"; the one that is here cannot be imported ({error})"),
            name="pycocotools" if missing else None,
        ) from error


def _rows(results: Sequence[Mapping[str, Any]], use_scores: bool) -> list[dict[str, Any]]:
    return [copy.deepcopy(dict(row)) | ({} if use_scores else {"score": 1.0}) for row in results]


def _indexed(coco: Any, dataset: dict[str, Any]) -> Any:
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _empty(annotated: Any) -> Any:
    """A result without any detection, which `loadRes` cannot read."""
    dataset = annotated.dataset
    parts = {"images": dataset["images"], "categories": dataset["categories"]}
    return _indexed(type(annotated)(), parts | {"annotations": []})
