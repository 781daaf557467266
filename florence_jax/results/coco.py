"""Results in COCO's JSON: detection records for evaluation, and a dataset of all images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from florence_jax.processing.locations import signed_area
from florence_jax.results.instances import Instance, exportable_instances
from florence_jax.results.rows import Row, image_name, result_to_json, shapes, size_of, values
from florence_jax.runtime.jsonl import json_text


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
        on_unknown_label: the model names classes freely. "error" refuses a label that is missing
            from `category_ids`; "skip" leaves the record out, as evaluation on a fixed class list
            wants.

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
        for instance in exportable_instances(result, size, where=f"image {image_id}"):
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
        for instance in exportable_instances(result, size, where=f"image {image_id}")
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
        polygons = instance.polygons()
        area = sum(abs(signed_area(p)) for p in polygons) if polygons else width * height
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


class CocoFile:
    """Collects rows and hands the dataset to `write` when it is saved, since its ids run through.

    Boxes have an empty `segmentation`; every annotation has `bbox`, `area`, `iscrowd` and, where
    the model gave one, `score`. Images that could not be read are left out.
    """

    def __init__(self, write: Callable[[str], Any], file_name: Callable[[str], str] = str) -> None:
        """
        Args:
            write: takes the JSON text.
            file_name: maps the name of an image to the one in the file.
        """
        self._write, self._file_name = write, file_name
        self._results: list[Mapping[str, Any]] = []
        self._names: list[str] = []
        self._sizes: list[tuple[int, int]] = []

    def write(self, row: Row) -> None:
        shapes(row, "coco")
        # Numbers as keys, because two prompts of one task are two answers.
        self._results.append({str(number): value for number, value in enumerate(values(row))})
        self._names.append(self._file_name(image_name(row)))
        self._sizes.append(size_of(row))

    def save(self) -> None:
        """Write the dataset of the rows so far."""
        dataset = to_coco_dataset(self._results, self._names, self._sizes)
        self._write(f"{json_text(result_to_json(dataset))}\n")


def _coco_geometry(instance: Instance) -> dict[str, Any]:
    x0, y0, x1, y1 = instance.bounds()
    geometry: dict[str, Any] = {"bbox": [x0, y0, x1 - x0, y1 - y0]}
    if polygons := instance.polygons():
        geometry["segmentation"] = [polygon.reshape(-1).tolist() for polygon in polygons]
    return geometry


def _check_lengths(**columns: Sequence[Any]) -> None:
    if len({len(column) for column in columns.values()}) > 1:
        counts = ", ".join(f"{len(column)} {name}" for name, column in columns.items())
        raise ValueError(f"one of each per image is needed, got {counts}")
