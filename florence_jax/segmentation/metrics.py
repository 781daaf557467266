"""Mean intersection over union, from a confusion matrix that adds up over images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from florence_jax.segmentation.masks import IGNORED


@dataclass(frozen=True)
class SegmentationScores:
    """Scores over all pixels that count.

    Attributes:
        mean_iou: mean over classes of intersection / union, of classes that occur in the truth or
            the answers.
        mean_accuracy: mean over classes in the truth of the share of their pixels that is right.
        pixel_accuracy: share of all pixels that is right.
        iou: of each class; NaN where it does not occur.
    """

    mean_iou: float
    mean_accuracy: float
    pixel_accuracy: float
    iou: tuple[float, ...]


def confusion(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """int64[K, K]: pixels by true class (rows) and answer (columns); add them up over images.

    Args:
        predicted: int[...], classes.
        labels: int[...], classes, 255 where a pixel does not count.
        num_classes: K.
    """
    counted = labels != IGNORED
    pairs = labels[counted].astype(np.int64) * num_classes + predicted[counted]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def scores(matrix: np.ndarray) -> SegmentationScores:
    """The scores of a confusion matrix.

    Raises:
        ValueError: no pixel counts.
    """
    if not matrix.sum():
        raise ValueError("no pixel of any mask counts: all of them are marked as ignored (255)")
    right, truth, answers = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    with np.errstate(invalid="ignore"):
        iou = right / (truth + answers - right)
        accuracy = right / truth
    return SegmentationScores(
        mean_iou=float(np.nanmean(iou)),
        mean_accuracy=float(np.nanmean(accuracy)),
        pixel_accuracy=float(right.sum() / matrix.sum()),
        iou=tuple(iou.tolist()),
    )
