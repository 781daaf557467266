"""Images of an annotated set: a static page of annotated images, and plots of distributions."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from florence_jax.annotation.schema import Annotation, Region
from florence_jax.annotation.statistics import Distributions
from florence_jax.batch.image_reader import FileBelow, open_image
from florence_jax.results.draw import draw_result
from florence_jax.runtime.atomic_file import atomic_open, atomic_write
from florence_jax.runtime.error_text import row_error_text

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
