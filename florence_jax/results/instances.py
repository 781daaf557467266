"""Located answers of a result as instances: boxes, quadrilaterals and polygons with their labels.

A *result* is `{task: value}`, what the pipeline returns for one image. Coordinates are pixels of
the EXIF-transposed image, so every image size passed in must be the transposed one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from florence_jax.processing.locations import dequantize

# Region tasks answer "car<loc_52><loc_332><loc_932><loc_774>": a label and one box, in bins.
_LOCATED_TEXT = re.compile("<loc_([0-9]{1,3})>" * 4)

_Kind = Literal["box", "quad", "polygons"]
_KINDS: dict[str, _Kind] = {"bboxes": "box", "quad_boxes": "quad", "polygons": "polygons"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Instance:
    """One located answer: a box, a quadrilateral or a set of polygons, with its label.

    Attributes:
        kind: which of the three `parts` holds.
        parts: `float64[n, 2]` points (x, y) in pixels. A box is one part of two corners, as the
            model gave them (not ordered, perhaps not finite); a quad one part of four; an instance
            one part per polygon.
        label: "" where the task gives none.
        score: confidence in [0, 1], or None where the result carries none.
    """

    kind: _Kind
    parts: tuple[np.ndarray, ...]
    label: str = ""
    score: float | None = None

    @property
    def is_finite(self) -> bool:
        """Whether the instance has points and every coordinate is a number."""
        return any(len(p) for p in self.parts) and all(np.isfinite(p).all() for p in self.parts)

    def bounds(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) in pixels with x0 <= x1 and y0 <= y1; needs at least one point."""
        # A part that encloses nothing does not widen the box of those that do.
        points = np.concatenate(self.polygons() or self.parts)
        (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
        return float(x0), float(y0), float(x1), float(y1)

    def polygons(self) -> list[np.ndarray]:
        """The parts that enclose something: `float64[n >= 3, 2]` each. Empty for a box."""
        return [] if self.kind == "box" else [part for part in self.parts if len(part) >= 3]


def instances(value: Any, image_size: tuple[int, int] | None = None) -> list[Instance]:
    """Every located answer in one task's value, boxes before polygons.

    Args:
        value: what stands under a task in a result: str or a mapping of lists.
        image_size: (width, height) in pixels. Needed only for a text answer that carries location
            tokens ("car<loc_52>..."), whose four bins become one box. Other text has no instances.

    Raises:
        ValueError: a value of no known form, lists of different lengths, or location tokens without
            `image_size`.
    """
    if isinstance(value, str):
        return _from_located_text(value, image_size)
    if not isinstance(value, Mapping):
        raise ValueError(f"a task's value is a str or a mapping, not {type(value).__name__}")
    if not value.keys() & {"bboxes", "quad_boxes", "polygons"}:
        raise ValueError(f"no bboxes, quad_boxes or polygons among the keys {sorted(value)}")

    found: list[Instance] = []
    for key, kind in _KINDS.items():
        shapes = value.get(key)
        if shapes is None:
            continue
        labels = _aligned(value, key, "labels", default="")
        scores = _aligned(value, key, "scores", default=None)
        for shape, label, score in zip(shapes, labels, scores, strict=True):
            parts = shape if kind == "polygons" else [shape]
            found.append(
                Instance(
                    kind=kind,
                    parts=tuple(_points(part, key) for part in parts),
                    label="" if label is None else str(label),
                    score=None if score is None else float(score),
                )
            )
    return found


def exportable_instances(
    result: Mapping[str, Any], size: tuple[int, int] | None, *, where: str
) -> Iterator[Instance]:
    """The instances of every task of a result that enclose something.

    Args:
        result: `{task: value}`.
        size: (width, height) in pixels, needed for text answers with location tokens.
        where: names the result in an error.

    Raises:
        ValueError: a coordinate or score that is not finite, or a malformed value.
    """
    for task, value in result.items():
        for instance in instances(value, size):
            if instance.kind != "box" and not instance.polygons():
                continue
            score_is_finite = instance.score is None or math.isfinite(instance.score)
            if not (instance.is_finite and score_is_finite):
                raise ValueError(f"{where}, {task}: {instance.label!r} is not finite: {instance}")
            yield instance


def _from_located_text(text: str, image_size: tuple[int, int] | None) -> list[Instance]:
    match = _LOCATED_TEXT.search(text)
    if match is None:
        return []
    if image_size is None:
        raise ValueError(f"{text!r} holds a box in bins; its image_size (width, height) is needed")
    corners = dequantize(np.reshape([int(bin) for bin in match.groups()], (2, 2)), image_size)
    return [Instance(kind="box", parts=(corners,), label=text[: match.start()].strip())]


def _aligned(value: Mapping[str, Any], key: str, field: str, *, default: Any) -> Sequence[Any]:
    """`value`'s labels or scores for the shapes under `key`, with `default` where it has none."""
    count = len(value[key])
    for name in (f"{key}_{field}", field):  # open-vocabulary answers have bboxes_labels
        column = value.get(name)
        if column is not None:
            if len(column) != count:
                raise ValueError(f"{key} has {count} entries but {name} has {len(column)}")
            return column
    return [default] * count


def _points(flat: Any, key: str) -> np.ndarray:
    array = np.asarray(flat, dtype=np.float64).reshape(-1)
    expected = {"bboxes": 4, "quad_boxes": 8}.get(key, len(array))
    if len(array) != expected:
        raise ValueError(f"an entry of {key} has {len(array)} coordinates, not {expected}")
    return array[: len(array) // 2 * 2].reshape(-1, 2)
