"""Training labels as text: a task's answer as Florence-2 would generate it.

The inverse of `florence_jax.processing.parse`: `parse(target_text(task, x, size), task, size)`
gives `x` back, coordinates at the centres of their bins and instances in the order asked for. The
forms are those of the published checkpoints' own answers (the generated texts in the public tests
of transformers and transformers.js):

    <OD>                          car<loc_x0><loc_y0><loc_x1><loc_y1>wheel<4 loc><4 loc>
    <REGION_PROPOSAL>             <4 loc><4 loc>
    <OCR_WITH_REGION>             STOP<8 loc>EXIT<8 loc>
    <..._SEGMENTATION>            <loc_x><loc_y>..., parts joined by <sep>
    <REGION_TO_CATEGORY>          car<4 loc of the region asked about>
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from florence_jax.processing.compat import ALL_MARKERS, UNGROUNDED_PHRASES
from florence_jax.processing.locations import (
    bins_to_text,
    box_to_text,
    check_image_size,
    quantize,
    signed_area,
)
from florence_jax.processing.tasks import TASKS

Order = Literal["given", "reading", "left_to_right", "area", "class", "random"]

# Where one label precedes all its boxes. The published models repeat the label for
# open-vocabulary detection and name it once in these answers.
LABELS_ONCE = frozenset({"<OD>", "<DENSE_REGION_CAPTION>", "<CAPTION_TO_PHRASE_GROUNDING>"})

_UNLABELLED = frozenset({"bboxes", "polygons"})
UNREADABLE = re.compile(r"[<\n]")


@dataclass(frozen=True, slots=True)
class _Instance:
    """One box, quad or polygon instance in bins: int32[N, 2] points per part."""

    label: str
    parts: tuple[np.ndarray, ...]
    polygon: bool

    def bounds(self) -> tuple[int, int, int, int]:
        points = np.concatenate(self.parts)
        return *points.min(0).tolist(), *points.max(0).tolist()


def target_text(
    task: str,
    answer: str | Mapping[str, Any],
    image_size: Sequence[float] | None = None,
    *,
    order: Order = "given",
    rng: np.random.Generator | None = None,
) -> str:
    """The text that the model learns for `task`, without `<s>` and `</s>`.

    Args:
        task: "<OD>" and so on; the answer of any other string is text.
        answer: what `parse` returns for the task: a string, `{"bboxes", "labels"}`,
            `{"quad_boxes", "labels"}`, `{"polygons", "labels"}` or, for open-vocabulary detection,
            boxes or polygons with `..._labels`. Pixels, x and y alternating. Labels of a task that
            writes none (`<REGION_PROPOSAL>`, segmentation) may be left out.
        image_size: (width, height) in pixels, for answers with coordinates.
        order: "given"; "reading": by the upper, then the left edge; "left_to_right": by the left,
            then the upper edge; "area": largest bounding box first, as the published models tend
            to; "class": by label, then reading; "random": a permutation drawn from `rng`. Tasks in
            `LABELS_ONCE` then gather each label's boxes at its first. Text has no order.
        rng: for "random" alone.

    Coordinates are floored into bins 0..999 and clamped. Polygons are written clockwise from the
    vertex nearest to the image's upper left corner; points that fall into the bin of the one before
    are dropped.

    Raises:
        ValueError: an answer that the task cannot express, such as a label with markup or a polygon
            of fewer than three bins.
    """
    if order not in get_args(Order):
        raise ValueError(f"order must be one of {get_args(Order)}, got {order!r}")
    kind = TASKS[task].answer if task in TASKS else "pure_text"
    if kind == "pure_text":
        return _text(task, answer)
    if not isinstance(answer, Mapping):
        raise ValueError(f"an answer to {task} is a mapping as parse returns, got {answer!r}")
    size = check_image_size(image_size, f"writing {task}")
    instances = _instances(task, kind, answer, size)
    instances = _ordered(instances, order, rng)
    if task in LABELS_ONCE:
        instances = _gathered(instances)
    if kind == "polygons":
        return _polygons_text(instances)
    text, previous = [], None
    for instance in instances:
        if not (task in LABELS_ONCE and instance.label == previous):
            text.append(instance.label)
        text.append(_shape_text(instance))
        previous = instance.label
    return "".join(text)


def region_text(text: str, region: ArrayLike | str, image_size: Sequence[float]) -> str:
    """An answer to a `<REGION_TO_...>` text task: the text, then the region asked about.

    Args:
        text: category, description or the words read.
        region: pixel box (x0, y0, x1, y1), or the `<loc_N>` text of the prompt.
        image_size: (width, height) in pixels.
    """
    return text + (region if isinstance(region, str) else box_to_text(region, image_size))


def canonical_polygon(points: np.ndarray) -> np.ndarray:
    """The form in which a polygon in bins is written: int[N, 2] -> int[M, 2], M <= N.

    Clockwise as seen (y points down), from the vertex nearest to the upper left corner of the image
    (the higher of two equally near), without vertices equal to the one before.
    """
    kept = points[np.any(points != np.roll(points, 1, axis=0), axis=1)]
    if len(kept) < 3:
        return kept
    if signed_area(kept.astype(np.int64)) < 0:
        kept = kept[::-1]
    x, y = kept.T.astype(np.int64)
    start = np.lexsort((x, y, x * x + y * y))[0]
    return np.roll(kept, -start, axis=0)


def _text(task: str, answer: str | Mapping[str, Any]) -> str:
    if not isinstance(answer, str):
        raise ValueError(f"an answer to {task} is a string, got {answer!r}")
    found = [marker for marker in ALL_MARKERS if marker in answer]
    if found:
        raise ValueError(f"the answer {answer!r} to {task} holds {found}, which decoding removes")
    return answer.strip()


def _instances(
    task: str, kind: str, answer: Mapping[str, Any], size: tuple[float, float]
) -> list[_Instance]:
    mixed = kind == "description_with_bboxes_or_polygons"
    names = {"ocr": ("quad_boxes",), "polygons": ("polygons",)}.get(kind, ("bboxes",))
    names = ("bboxes", "polygons") if mixed else names
    if not any(name in answer for name in names):
        raise ValueError(f"an answer to {task} has {' or '.join(names)}, got {sorted(answer)}")
    instances = []
    for name in (name for name in names if name in answer):
        shapes = answer[name]
        labels = answer.get(f"{name}_labels" if mixed else "labels")
        if kind in _UNLABELLED:
            labels = [""] * len(shapes)
        if labels is None or len(labels) != len(shapes):
            raise ValueError(f"{task}: {len(shapes)} {name} need as many labels, got {labels!r}")
        for label, shape in zip(labels, shapes, strict=True):
            if kind not in _UNLABELLED:
                check_label(task, label)
            instances.append(_instance(task, name, label, shape, size))
    if len({instance.polygon for instance in instances}) > 1:
        raise ValueError(f"{task}: an answer holds boxes or polygons, not both; write two answers")
    return instances


def check_label(task: str, label: str) -> None:
    """Refuse a label that `parse` would not read back from an answer to `task`."""
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"{task}: a label must be a non-empty string, got {label!r}")
    if label != label.strip() or UNREADABLE.search(label):
        raise ValueError(
            f"{task}: the label {label!r} would not be read back: it must be one line without < "
            "and without spaces around it"
        )
    if task == "<CAPTION_TO_PHRASE_GROUNDING>" and label in UNGROUNDED_PHRASES:
        raise ValueError(f"{task} never reports the phrase {label!r}; leave it out")


def _instance(task: str, name: str, label: str, shape: Any, size: tuple[float, float]) -> _Instance:
    if name == "bboxes":
        # box_to_text's checks: four finite numbers, corners in order.
        box_to_text(shape, size)
    parts = shape if name == "polygons" else [shape]
    bins = tuple(quantize(np.asarray(part, np.float64).reshape(-1, 2), size) for part in parts)
    if name == "quad_boxes" and bins[0].shape != (4, 2):
        raise ValueError(f"{task}: a quad is four points, got {shape!r}")
    if name == "polygons":
        bins = tuple(canonical_polygon(part) for part in bins)
        if not bins or min(map(len, bins)) < 3:
            raise ValueError(
                f"{task}: {label!r} has a polygon of fewer than three different bins; drop parts "
                f"that are smaller than a thousandth of the image: {shape!r}"
            )
    return _Instance(label, bins, name == "polygons")


def _ordered(
    instances: list[_Instance], order: Order, rng: np.random.Generator | None
) -> list[_Instance]:
    if (rng is None) == (order == "random"):
        raise ValueError(
            f"order={order!r} with rng={rng!r}: give an rng for 'random', and only then"
        )
    if rng is not None:
        return [instances[index] for index in rng.permutation(len(instances))]
    if order == "given":
        return instances

    def key(instance: _Instance) -> tuple:
        x0, y0, x1, y1 = instance.bounds()
        if order == "area":
            return ((x0 - x1) * (y1 - y0), y0, x0)
        if order == "left_to_right":
            return (x0, y0)
        return (instance.label, y0, x0) if order == "class" else (y0, x0)

    return sorted(instances, key=key)


def _gathered(instances: list[_Instance]) -> list[_Instance]:
    by_label: dict[str, list[_Instance]] = {}
    for instance in instances:
        by_label.setdefault(instance.label, []).append(instance)
    return [instance for group in by_label.values() for instance in group]


def _shape_text(instance: _Instance) -> str:
    inner = "<sep>".join(bins_to_text(part) for part in instance.parts)
    return f"<poly>{inner}</poly>" if instance.polygon else inner


def _polygons_text(instances: list[_Instance]) -> str:
    """Write polygons: one instance bare, as the published models do; several are enclosed."""
    text = "".join(_shape_text(instance) for instance in instances)
    return text.removeprefix("<poly>").removesuffix("</poly>") if len(instances) == 1 else text
