"""Annotations as other tools read them: COCO, and rows `image, prefix, suffix`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from florence_jax.annotation.boxes import enclosed_area
from florence_jax.annotation.schema import Annotation, Region
from florence_jax.annotation.to_examples import questions
from florence_jax.processing import TASKS
from florence_jax.runtime.atomic_file import atomic_write
from florence_jax.runtime.jsonl import json_text, write_jsonl


def write_rows(
    annotations: Iterable[Annotation], path: Path, tasks: Sequence[str] = tuple(TASKS)
) -> int:
    """Write one JSON line for each question that the annotations answer; returns how many.

    `prefix` is the task with its input, `suffix` the text to be learnt. Image names are paths below
    the directory of the images.
    """
    return write_jsonl(
        path,
        (
            {
                "image": annotation.image,
                "prefix": question.task + question.prompt,
                "suffix": question.suffix(annotation.size),
            }
            for annotation in annotations
            for question in questions(annotation, tasks)
        ),
    )


def write_coco(annotations: Iterable[Annotation], instances: Path, captions: Path) -> None:
    """Write the labelled regions and the texts as COCO's two kinds of files.

    Both have the same images. Categories are the labels in alphabetical order. A region without an
    outline has its box as its `segmentation`; `score` and, where there is one, `caption` (the
    description) stand beside COCO's own fields, and `level` and `score` beside a text's.
    """
    images: list[dict[str, Any]] = []
    regions: list[tuple[str, dict[str, Any]]] = []
    texts: list[dict[str, Any]] = []
    for number, annotation in enumerate(annotations, start=1):
        images.append(
            {
                "id": number,
                "file_name": annotation.image,
                "width": annotation.width,
                "height": annotation.height,
            }
        )
        regions += [
            (region.label, {"id": 0, "image_id": number, **_instance(region)})
            for region in annotation.regions
            if region.label is not None
        ]
        texts += [
            {"id": 0, "image_id": number, "caption": one.text, "level": one.level,
             "score": one.score}
            for one in annotation.texts
        ]  # fmt: skip
    names = sorted({label for label, _ in regions})
    numbers = {name: number for number, name in enumerate(names, start=1)}
    for number, (label, record) in enumerate(regions, start=1):
        record |= {"id": number, "category_id": numbers[label]}
    for number, record in enumerate(texts, start=1):
        record["id"] = number
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    records = [record for _, record in regions]
    _write(instances, {"images": images, "annotations": records, "categories": categories})
    _write(captions, {"images": images, "annotations": texts})


def _instance(region: Region) -> dict[str, Any]:
    x0, y0, x1, y1 = region.box
    polygons = [list(polygon) for polygon in region.polygons]
    outline = polygons or [[x0, y0, x1, y0, x1, y1, x0, y1]]
    record: dict[str, Any] = {
        "bbox": [x0, y0, round(x1 - x0, 3), round(y1 - y0, 3)],
        "area": round(sum(map(enclosed_area, outline)), 3),
        "segmentation": outline,
        "iscrowd": 0,
        "score": region.score,
    }
    return record | ({"caption": region.description} if region.description else {})


def _write(path: Path, content: dict[str, Any]) -> None:
    atomic_write(path, json_text(content))
