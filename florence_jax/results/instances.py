"""Results as other tools read them: COCO records, `supervision` detections, plain JSON.

A *result* is `{task: value}`, what the pipeline returns for one image. Coordinates are pixels of
the EXIF-transposed image, so a COCO file written here describes images as a viewer shows them:
sizes passed in must be the transposed ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image, ImageDraw

from florence_jax.processing.locations import dequantize

if TYPE_CHECKING:
    import supervision

# Region tasks answer "car<loc_52><loc_332><loc_932><loc_774>": a label and one box, in bins.
_LOCATED_TEXT = re.compile("<loc_([0-9]{1,3})>" * 4)

_Kind = Literal["box", "quad", "polygons"]
_KINDS: dict[str, _Kind] = {"bboxes": "box", "quad_boxes": "quad", "polygons": "polygons"}

# PIL's rasteriser works in C ints; every real picture is far smaller.
_COORDINATE_LIMIT = 1 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Instance:
    """One located answer: a box, a quadrilateral or a set of polygons, with its label.

    Attributes:
      kind: which of the three `parts` holds.
      parts: `float64[n, 2]` points (x, y) in pixels. A box is one part of two corners, as the model
        gave them (not ordered, perhaps not finite); a quad one part of four; an instance one part
        per polygon.
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


def to_coco_results(
    results: Iterable[Mapping[str, Any]],
    image_ids: Iterable[int],
    category_ids: Mapping[str, int] | int,
    *,
    image_sizes: Sequence[tuple[int, int]] | None = None,
    default_score: float = 1.0,
    on_unknown_label: Literal["error", "skip"] = "error",
) -> list[dict[str, Any]]:
    """COCO detection results: what `pycocotools.coco.COCO.loadRes` takes.

    Each record has `image_id`, `category_id`, `bbox` (x, y, width, height in pixels), `score`, and
    for quads and polygons `segmentation` (flat polygons). An instance none of whose polygons has
    three points encloses nothing and gives no record; a text answer without locations gives none.

    Args:
      results: one result per image.
      image_ids: the COCO image id of each.
      category_ids: label -> category id, or one id for everything (class-agnostic evaluation).
      image_sizes: (width, height) of each image, needed for text answers with location tokens.
      default_score: stands in where a result carries no scores; COCO requires one.
      on_unknown_label: the model names classes freely. "error" refuses a label that is missing from
        `category_ids`; "skip" leaves the record out, as evaluation on a fixed class list wants.

    Raises:
      ValueError: different numbers of results and ids, an unknown label, a coordinate or score
        that is not finite, or a malformed value.
    """
    if on_unknown_label not in ("error", "skip"):
        raise ValueError(f"on_unknown_label is 'error' or 'skip', not {on_unknown_label!r}")
    results, image_ids = list(results), list(image_ids)
    sizes: Sequence[Any] = [None] * len(results) if image_sizes is None else image_sizes
    _check_lengths(results=results, image_ids=image_ids, image_sizes=sizes)

    records = []
    for result, image_id, size in zip(results, image_ids, sizes, strict=True):
        for instance in _exportable(result, size, where=f"image {image_id}"):
            if isinstance(category_ids, int):
                category_id = category_ids
            elif instance.label in category_ids:
                category_id = category_ids[instance.label]
            elif on_unknown_label == "skip":
                continue
            else:
                raise ValueError(
                    f"image {image_id}: label {instance.label!r} is not in category_ids; add it, "
                    "or pass on_unknown_label='skip' to leave such records out"
                )
            score = default_score if instance.score is None else instance.score
            record = {"image_id": int(image_id), "category_id": int(category_id)}
            records.append(record | _coco_geometry(instance) | {"score": float(score)})
    return records


def to_coco_dataset(
    results: Iterable[Mapping[str, Any]],
    file_names: Iterable[str],
    image_sizes: Sequence[tuple[int, int]],
    *,
    category_ids: Mapping[str, int] | None = None,
    description: str = "Florence-2 annotations",
) -> dict[str, Any]:
    """A COCO JSON dataset (`info`, `images`, `annotations`, `categories`) of the results.

    Ids count from 1: pycocotools takes annotation id 0 for "no match". Annotations keep a `score`
    where the result has one; boxes have an empty `segmentation`.

    Args:
      results: one result per image.
      file_names: the image files, relative to the dataset's image folder.
      image_sizes: (width, height) of each, in pixels, after the EXIF transpose.
      category_ids: label -> category id. Default: the labels found, sorted, from 1. The empty
        label is written as the category "object".

    Raises:
      ValueError: sequences of different lengths, a label outside `category_ids`, a coordinate or
        score that is not finite, or a malformed value.
    """
    results, file_names = list(results), list(file_names)
    _check_lengths(results=results, file_names=file_names, image_sizes=image_sizes)
    image_ids = range(1, len(results) + 1)
    found = [
        (image_id, instance)
        for image_id, result, size in zip(image_ids, results, image_sizes, strict=True)
        for instance in _exportable(result, size, where=f"image {image_id}")
    ]
    labels = {instance.label for _, instance in found}
    if category_ids is None:
        category_ids = {label: n for n, label in enumerate(sorted(labels), start=1)}
    if unknown := labels - category_ids.keys():
        raise ValueError(f"labels not in category_ids: {sorted(unknown)}")

    annotations = []
    for number, (image_id, instance) in enumerate(found, start=1):
        geometry = _coco_geometry(instance)
        _, _, width, height = geometry["bbox"]
        area = sum(_area(p) for p in instance.polygons()) if instance.polygons() else width * height
        annotation = {
            "id": number,
            "image_id": image_id,
            "category_id": int(category_ids[instance.label]),
            "segmentation": [],
            "area": area,
            "iscrowd": 0,
        }
        score = {} if instance.score is None else {"score": instance.score}
        annotations.append(annotation | geometry | score)
    return {
        "info": {"description": description},
        "images": [
            {"id": n, "file_name": str(name), "width": int(width), "height": int(height)}
            for n, name, (width, height) in zip(image_ids, file_names, image_sizes, strict=True)
        ],
        "annotations": annotations,
        "categories": [
            {"id": int(n), "name": label or "object", "supercategory": ""}
            for label, n in category_ids.items()
        ],
    }


def to_supervision(
    result: Mapping[str, Any], image_size: tuple[int, int]
) -> supervision.Detections:
    """`supervision.Detections` with everything the result has.

    `supervision.Detections.from_vlm(sv.VLM.FLORENCE_2, ...)` reads our results as they are; this
    one also keeps scores (`confidence`), class ids (positions in the sorted distinct labels), the
    labels of polygons, and open-vocabulary polygons. `data["class_name"]` holds the labels and
    `data["xyxyxyxy"]` the quads when every instance is one. Where an instance has polygons all get
    masks, a box its filled rectangle, since `Detections` holds a mask for all or for none. Text
    without locations gives empty detections.

    Args:
      result: `{task: value}`.
      image_size: (width, height) in pixels, the size of the masks.

    Raises:
      ImportError: supervision is not installed.
      ValueError: a coordinate or score that is not finite, or a malformed value.
    """
    try:
        import supervision as sv
    except ImportError as error:
        raise ImportError("to_supervision needs supervision: pip install supervision") from error

    found = list(_exportable(result, image_size, where="result"))
    if not found:
        empty = sv.Detections.empty()
        empty.data = {"class_name": np.empty(0, dtype=str)}
        return empty
    names = np.array([instance.label for instance in found])
    data: dict[str, Any] = {"class_name": names}
    if all(instance.kind == "quad" for instance in found):
        data["xyxyxyxy"] = np.stack([i.parts[0] for i in found]).astype(np.float32)
    masks = None
    if any(instance.kind == "polygons" for instance in found):
        masks = np.stack([_mask(instance, image_size) for instance in found])
    scores = [instance.score for instance in found]
    return sv.Detections(
        xyxy=np.array([instance.bounds() for instance in found], dtype=np.float32),
        mask=masks,
        confidence=None if None in scores else np.array(scores, dtype=np.float32),
        class_id=np.unique(names, return_inverse=True)[1],
        data=data,
    )


def result_to_json(record: Any) -> Any:
    """The record in types that `json.dumps(..., allow_nan=False)` writes: dict, list, str, numbers.

    Arrays (numpy, jax) become nested lists, their scalars python numbers, and tuples lists.

    Raises:
      ValueError: a number that is NaN or infinite (JSON has none), named by its place.
      TypeError: a key that is not a str, or a value of any other type.
    """
    return _json_safe(record, "record")


def _json_safe(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # np.str_ is a str too, and so is a StrEnum's member
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}; JSON keys are strings")
        return {str(k): _json_safe(v, f"{where}[{str(k)!r}]") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_safe(item, f"{where}[{n}]") for n, item in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}, which JSON cannot hold")
        return float(value)
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.dtype.kind not in "biufUO":  # bfloat16 and the float8s know no tolist of their own
            try:
                array = array.astype(np.float32)
            except (TypeError, ValueError):
                raise TypeError(f"{where} is an array of {array.dtype}") from None
        if array.dtype.kind != "O" or array.ndim:
            return _json_safe(array.tolist(), where)
    raise TypeError(f"{where} is a {type(value).__name__}, which JSON cannot hold")


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


def _exportable(
    result: Mapping[str, Any], size: tuple[int, int] | None, *, where: str
) -> Iterable[Instance]:
    for task, value in result.items():
        for instance in instances(value, size):
            if instance.kind != "box" and not instance.polygons():
                continue
            score_is_finite = instance.score is None or math.isfinite(instance.score)
            if not (instance.is_finite and score_is_finite):
                raise ValueError(f"{where}, {task}: {instance.label!r} is not finite: {instance}")
            yield instance


def _coco_geometry(instance: Instance) -> dict[str, Any]:
    x0, y0, x1, y1 = instance.bounds()
    geometry: dict[str, Any] = {"bbox": [x0, y0, x1 - x0, y1 - y0]}
    if polygons := instance.polygons():
        geometry["segmentation"] = [polygon.reshape(-1).tolist() for polygon in polygons]
    return geometry


def _area(points: np.ndarray) -> float:
    """Shoelace area in square pixels."""
    x, y = points.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def _mask(instance: Instance, image_size: tuple[int, int]) -> np.ndarray:
    """`bool[height, width]`: the union of the polygons, or the box."""
    mask = Image.new("1", (int(image_size[0]), int(image_size[1])))
    draw = ImageDraw.Draw(mask)
    if instance.kind == "box":
        draw.rectangle(np.clip(instance.bounds(), -1, _COORDINATE_LIMIT).tolist(), fill=1)
    for polygon in instance.polygons():
        clipped = np.clip(polygon, -_COORDINATE_LIMIT, _COORDINATE_LIMIT)
        draw.polygon([tuple(point) for point in clipped.tolist()], fill=1)
    return np.asarray(mask, dtype=bool)


def _check_lengths(**columns: Sequence[Any]) -> None:
    if len({len(column) for column in columns.values()}) > 1:
        counts = ", ".join(f"{len(column)} {name}" for name, column in columns.items())
        raise ValueError(f"one of each per image is needed, got {counts}")
