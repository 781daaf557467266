"""Mask metrics: IoU of polygons, mIoU and oIoU. Coordinates are pixels, x and y alternating."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from florence_jax.evaluation.metrics.coco import import_pycocotools

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
