"""Scores and report of a segmentation network's rows, each a confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from florence_jax.batch.job import Row
from florence_jax.evaluation.image_masks import MASK_BENCHMARKS, MaskPlan
from florence_jax.evaluation.report import Part, Report
from florence_jax.evaluation.run import EvaluationError
from florence_jax.evaluation.scoring import Outcome
from florence_jax.segmentation.metrics import scores


def score_masks(rows: Sequence[Row], names: Sequence[str]) -> Outcome:
    """mIoU, mean and pixel accuracy and the IoU of each class, in percent, over all pixels.

    Args:
        rows: of `SegmentJob`.
        names: of all classes. Those that are neither in the masks nor answered have no IoU.

    Raises:
        EvaluationError: an image or mask could not be read, or no pixel counts.
    """
    failed = [row for row in rows if "confusion" not in row]
    if failed:
        raise EvaluationError(
            f"{len(failed)} of {len(rows)} images have no answer, such as {failed[0]['id']} "
            f"({failed[0].get('error')}): mIoU without their pixels would be another figure. Mend "
            "them, and run into another --output"
        )
    matrices = [_matrix(row, len(names)) for row in rows]
    total = np.sum(matrices, axis=0)
    if not total.sum():
        raise EvaluationError(
            "no pixel of any mask counts, all are marked as ignored (255): are these the masks?"
        )
    found = scores(total)
    others = {
        "mean accuracy": 100 * found.mean_accuracy,
        "pixel accuracy": 100 * found.pixel_accuracy,
    }
    for name, value in zip(names, found.iou, strict=True):
        if not np.isnan(value):
            others[f"IoU of {name}"] = 100 * value
    # An image without a pixel that counts has nothing wrong.
    each = [scores(one).mean_iou if one.any() else 1.0 for one in matrices]
    return Outcome(metric="mIoU", value=100 * found.mean_iou, each=each, others=others)


def report_masks(
    plan: MaskPlan,
    rows: Sequence[Row],
    *,
    names: Sequence[str],
    model: str,
    settings: Mapping[str, Any],
) -> Report:
    """The report of a finished run; errors as `score_masks`.

    Args:
        plan: the images.
        rows: all rows, in order.
        names: of all classes.
        model: hub id or path.
        settings: of the run, for the report.
    """
    outcome = score_masks(rows, names)
    readable = [_readable(row, names) for row in rows]
    return Report(
        benchmark=plan.benchmark,
        split=plan.split,
        model=model,
        settings=settings,
        parts=[Part(name=MASK_BENCHMARKS[plan.benchmark].title, rows=readable, outcome=outcome)],
        examples=len(rows),
        total=len(plan.names),
        failed=0,
    )


def _readable(row: Row, names: Sequence[str]) -> Row:
    """The row with its classes as truth, and their IoU, the worst first, as answer."""
    matrix = _matrix(row, len(names))
    truth = [name for name, count in zip(names, matrix.sum(1), strict=True) if count]
    iou = scores(matrix).iou if matrix.any() else ()
    known = sorted((value, n) for n, value in enumerate(iou) if not np.isnan(value))
    lines = "\n".join(f"{names[number]}: IoU {value:.3f}" for value, number in known)
    return {**row, "truth": truth, "answers": [{"prompt": "segment", "result": {"iou": lines}}]}


def _matrix(row: Row, num_classes: int) -> np.ndarray:
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for truth, answer, pixels in row["confusion"]:
        matrix[truth, answer] = pixels
    return matrix
