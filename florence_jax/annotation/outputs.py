"""Outputs of a set of annotations: statistics, plots, a gallery, COCO, and rows for training."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from florence_jax.annotation.boxes import enclosed_area
from florence_jax.annotation.noun_phrases import NounPhraseExtractor
from florence_jax.annotation.schema import Annotation, Region, read_annotations
from florence_jax.annotation.statistics import (
    Distributions,
    Statistics,
    saved_throughput,
    statistics,
)
from florence_jax.annotation.to_examples import to_examples
from florence_jax.batch.image_reader import FileBelow, open_image
from florence_jax.processing import TASKS
from florence_jax.results.draw import draw_result
from florence_jax.runtime.atomic_file import atomic_open, atomic_write, remove_leftovers
from florence_jax.runtime.error_text import row_error_text
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


# Photos are shown in a column, not at their full size.
_MAX_PIXELS = 640 * 640
# Of plots: sizes in pixels, numbers of bars and cells, colors.
_SIZE = (480, 320)
_MARGIN = 44
_BARS = 40
_CELLS = 48
_INK, _BAR, _PAPER = (24, 24, 27), (0, 114, 178), (255, 255, 255)

_HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Annotations</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem }
section { border-top: 1px solid #ccc; padding: 1rem 0 }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top }
img { max-width: 24rem; display: block } figcaption, small { color: #666 }
h2 { font-size: 1rem; margin: 0 0 .5rem }
</style>
"""


def write_gallery(
    annotations: Iterable[Annotation], root: Path, directory: Path, most: int
) -> Path:
    """Write DIRECTORY/index.html and its images, for the first `most` annotations.

    Args:
        root: the directory that image names start from.

    Returns:
        The page.
    """
    directory.mkdir(parents=True, exist_ok=True)
    sections = [
        _section(number, annotation, root, directory)
        for number, annotation in enumerate(islice(annotations, most))
    ]
    page = directory / "index.html"
    atomic_write(page, _HEAD + "\n".join(sections) + "\n</html>\n")
    return page


def _section(number: int, annotation: Annotation, root: Path, directory: Path) -> str:
    title = f"<h2>{html.escape(annotation.image)}</h2>"
    try:
        image = open_image(FileBelow(str(root), annotation.image, follow_links=True))
    except Exception as error:  # the page has the other images
        return f"<section>{title}<p>{html.escape(row_error_text(error))}</p></section>"
    scale = min(1.0, math.sqrt(_MAX_PIXELS / (annotation.width * annotation.height)))
    size = max(1, round(annotation.width * scale)), max(1, round(annotation.height * scale))
    shown = image.resize(size)
    figures = []
    for name, result in _drawn(annotation, scale):
        file = f"{number:05d}-{name.replace(' ', '-')}.jpg"
        _save(draw_result(shown, {"": result}), directory / file)
        figures.append(
            f'<figure><img src="{file}" alt="{name}"><figcaption>{name}</figcaption></figure>'
        )
    if not figures:
        file = f"{number:05d}.jpg"
        _save(shown, directory / file)
        figures.append(f'<figure><img src="{file}" alt=""></figure>')
    texts = [
        f"<p>{html.escape(text.text)} <small>{text.level}, {text.score:.2f}</small></p>"
        for text in annotation.texts
    ]
    taken = ", ".join(f"{count} {reason}" for reason, count in annotation.rejected.items())
    note = f"<p><small>rejected: {html.escape(taken)}</small></p>" if taken else ""
    return f"<section>{title}{''.join(figures)}{''.join(texts)}{note}</section>"


def _save(image: Image.Image, path: Path) -> None:
    with atomic_open(path, "wb", durable=False) as file:
        image.save(file, format="jpeg", quality=88)


def _drawn(annotation: Annotation, scale: float) -> Iterable[tuple[str, dict[str, Any]]]:
    """(caption, result to draw) of each drawing, coordinates scaled."""
    if annotation.regions:
        yield (
            "regions",
            _shapes(annotation.regions, [_name(one) for one in annotation.regions], scale),
        )
    for number, text in enumerate(annotation.texts):
        found = [phrase for phrase in annotation.phrases if phrase.text == number]
        if found:
            # Several texts may have one level after a merge.
            yield (
                f"phrases {number} {text.level}",
                _shapes(found, [phrase.phrase for phrase in found], scale),
            )
    if annotation.ocr:
        yield (
            "written text",
            {
                "quad_boxes": [_scaled(line.quad, scale) for line in annotation.ocr],
                "labels": [line.text for line in annotation.ocr],
                "scores": [line.score for line in annotation.ocr],
            },
        )


def _shapes(parts: Sequence[Any], names: Sequence[str], scale: float) -> dict[str, Any]:
    """Boxes with their scores, and the outlines of those that have one."""
    result: dict[str, Any] = {
        "bboxes": [_scaled(part.box, scale) for part in parts],
        "bboxes_labels": list(names),
        "bboxes_scores": [part.score for part in parts],
        "polygons": [],
        "polygons_labels": [],
    }
    for part, name in zip(parts, names, strict=True):
        if part.polygons:
            result["polygons"].append([_scaled(polygon, scale) for polygon in part.polygons])
            result["polygons_labels"].append(name)
    return result


def _scaled(points: Sequence[float], scale: float) -> list[float]:
    return [number * scale for number in points]


def _name(region: Region) -> str:
    return region.description or region.label or ""


def save_plots(shown: Distributions, directory: Path) -> list[Path]:
    """Write one PNG for each distribution that has values; returns the files.

    Areas, aspect ratios and centres of boxes are those of figure 5 of arXiv 2311.06242.
    """
    directory.mkdir(parents=True, exist_ok=True)
    images = {
        "boxes_per_image": _histogram(shown.boxes_per_image, "boxes per image"),
        "area": _histogram(np.sqrt(shown.area), "square root of a box's share of the image", 0, 1),
        "aspect": _histogram(shown.aspect, "log2 of width / height", -4, 4),
        "centres": _heat_map(shown.centre_x, shown.centre_y, "centres of boxes"),
        "box_score": _histogram(shown.box_score, "confidence of boxes", 0, 1),
        "text_score": _histogram(shown.text_score, "confidence of texts", 0, 1),
    }
    written = []
    for name, image in images.items():
        if image is not None:
            written.append(directory / f"{name}.png")
            with atomic_open(written[-1], "wb", durable=False) as file:
                image.save(file, format="png")
    return written


def _histogram(
    values: Sequence[float] | np.ndarray,
    title: str,
    low: float | None = None,
    high: float | None = None,
) -> Image.Image | None:
    """A histogram from `low` to `high`, clipped; by default with one bar a whole number."""
    if not len(values):
        return None
    array = np.asarray(values, np.float64)
    if low is None or high is None:
        top = int(array.max()) + 1
        edges = np.arange(0, top + 1, -(-top // _BARS)) if top > _BARS else np.arange(top + 1)
        edges = np.append(edges, edges[-1] + 1) - 0.5
    else:
        edges = np.linspace(low, high, _BARS + 1)
    counts, _ = np.histogram(np.clip(array, edges[0], edges[-1]), edges)
    image, draw = _page(title)
    (width, height), most = _SIZE, max(1, int(counts.max()))
    step = (width - 2 * _MARGIN) / len(counts)
    for number, count in enumerate(counts.tolist()):
        left = _MARGIN + number * step
        top = height - _MARGIN - (height - 2 * _MARGIN) * count / most
        if count:
            draw.rectangle((left, top, left + max(1, step - 1), height - _MARGIN), fill=_BAR)
    _axis(draw, f"{edges[0]:g}", f"{edges[-1]:g}")
    draw.text((4, _MARGIN - 6), str(most), fill=_INK, font=_font())
    return image


def _heat_map(x: Sequence[float], y: Sequence[float], title: str) -> Image.Image | None:
    """A heat map of points in 0..1 of the image's sides; darker cells have more points."""
    if not len(x):
        return None
    counts, _, _ = np.histogram2d(y, x, bins=_CELLS, range=((0, 1), (0, 1)))
    # Shades by the square root, so that single boxes show beside crowds.
    shades = np.sqrt(counts / max(counts.max(), 1))[..., None]
    paper, bar = np.array(_PAPER, float), np.array(_BAR, float)
    cells = Image.fromarray((paper + shades * (bar - paper)).round().astype(np.uint8))
    image, draw = _page(title)
    side = _SIZE[1] - 2 * _MARGIN
    left = (_SIZE[0] - side) // 2
    image.paste(cells.resize((side, side), Image.Resampling.NEAREST), (left, _MARGIN))
    draw.rectangle((left, _MARGIN, left + side, _MARGIN + side), outline=_INK)
    return image


def _page(title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", _SIZE, _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((_MARGIN, 12), title, fill=_INK, font=_font())
    return image, draw


def _axis(draw: ImageDraw.ImageDraw, low: str, high: str) -> None:
    width, height = _SIZE
    draw.line((_MARGIN, height - _MARGIN, width - _MARGIN, height - _MARGIN), fill=_INK)
    draw.text((_MARGIN, height - _MARGIN + 6), low, fill=_INK, font=_font())
    draw.text((width - _MARGIN, height - _MARGIN + 6), high, fill=_INK, font=_font(), anchor="ra")


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(13)
