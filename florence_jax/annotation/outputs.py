"""Outputs of a set of annotations: statistics, plots, a gallery, COCO, and rows for training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from florence_jax.annotation.boxes import enclosed_area
from florence_jax.annotation.gallery import save_plots, write_gallery
from florence_jax.annotation.noun_phrases import NounPhraseExtractor
from florence_jax.annotation.schema import Annotation, Region, read_annotations
from florence_jax.annotation.statistics import Statistics, saved_throughput, statistics
from florence_jax.annotation.to_examples import to_examples
from florence_jax.processing import TASKS
from florence_jax.runtime.atomic_file import atomic_write, remove_leftovers
from florence_jax.runtime.jsonl import json_text, write_jsonl

Export = Literal["coco", "rows"]
STATISTICS, PLOTS, GALLERY = "statistics.json", "plots", "gallery"
ROWS, INSTANCES, CAPTIONS = "rows.jsonl", "instances.coco.json", "captions.coco.json"


@dataclass(frozen=True, kw_only=True)
class AnnotationOutputs:
    """Outputs beside the statistics.

    Attributes:
        exports: of "coco" (instances and captions) and "rows" (`image, prefix, suffix`).
        gallery: images on the gallery page; 0 for no page.
    """

    exports: Sequence[Export] = ()
    gallery: int = 0


def write_outputs(
    annotations: Path,
    directory: Path,
    root: Path,
    extractor: NounPhraseExtractor,
    options: AnnotationOutputs,
) -> Statistics:
    """Write the outputs into `directory`, in place of those that an earlier call wrote.

    Args:
        annotations: a file or directory of annotations.
        directory: the directory to write to.
        root: the directory that image names start from.
        extractor: finds the objects of texts.
        options: which outputs.
    """
    remove_leftovers(directory)
    counted = statistics(read_annotations(annotations), extractor)
    record = counted.record() | {"throughput": list(saved_throughput(directory))}
    content = json.dumps(record, indent=1, ensure_ascii=False)
    save_plots(counted.distributions, directory / PLOTS)
    if "coco" in options.exports:
        write_coco(read_annotations(annotations), directory / INSTANCES, directory / CAPTIONS)
    if "rows" in options.exports:
        write_rows(read_annotations(annotations), directory / ROWS)
    if options.gallery:
        write_gallery(read_annotations(annotations), root, directory / GALLERY, options.gallery)
    # Written last: a loop (`--refine`) takes this file as the sign that all outputs are there.
    atomic_write(directory / STATISTICS, content + "\n")
    return counted


def write_rows(
    annotations: Iterable[Annotation], path: Path, tasks: Sequence[str] = tuple(TASKS)
) -> int:
    """Write one JSON line for each training example of the annotations; returns how many.

    `prefix` is the prompt (the task with its input), `suffix` the labels as text. Image names are
    paths below the directory of the images.
    """
    return write_jsonl(
        path,
        (
            {
                "image": annotation.image,
                "prefix": example.task + example.prompt,
                "suffix": example.labels_text(annotation.size),
            }
            for annotation in annotations
            for example in to_examples(annotation, tasks)
        ),
    )


def write_coco(annotations: Iterable[Annotation], instances: Path, captions: Path) -> None:
    """Write the labelled regions and the texts as COCO's two kinds of files.

    Both have the same images. Categories are the labels in alphabetical order. A region without an
    outline has its box as `segmentation`. Besides COCO's own fields, a region has `score` and, if
    it was described, `caption`; a text has `level` and `score`.
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
    content = {"images": images, "annotations": records, "categories": categories}
    atomic_write(instances, json_text(content))
    atomic_write(captions, json_text({"images": images, "annotations": texts}))


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
