"""Annotated pictures as one static page, to look at what a model and its filters made."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from florence_jax.annotation.schema import Annotation, Region
from florence_jax.batch.image_reader import FileBelow, open_picture
from florence_jax.results.draw import draw_result
from florence_jax.runtime.atomic_file import atomic_open, atomic_write
from florence_jax.runtime.error_text import row_error_text

# Photos are shown in a column, not at their full size.
_MOST_PIXELS = 640 * 640

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
    """Write DIRECTORY/index.html and its pictures, for the first `most` annotations.

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
        picture = open_picture(FileBelow(str(root), annotation.image, follow_links=True))
    except Exception as error:  # the page has the other pictures
        return f"<section>{title}<p>{html.escape(row_error_text(error))}</p></section>"
    scale = min(1.0, math.sqrt(_MOST_PIXELS / (annotation.width * annotation.height)))
    size = max(1, round(annotation.width * scale)), max(1, round(annotation.height * scale))
    shown = picture.resize(size)
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


def _save(picture: Image.Image, path: Path) -> None:
    with atomic_open(path, "wb", durable=False) as file:
        picture.save(file, format="jpeg", quality=88)


def _drawn(annotation: Annotation, scale: float) -> Iterable[tuple[str, dict[str, Any]]]:
    """(caption, result to draw) of each picture, coordinates scaled."""
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
