"""Distributions of an annotated set as pictures.

Areas, aspect ratios and centres of boxes are what figure 5 of arXiv 2311.06242 shows of FLD-5B.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from florence_jax.annotation.statistics import Distributions
from florence_jax.runtime.atomic_file import atomic_open

_SIZE = (480, 320)
_MARGIN = 44
_BARS = 40
_CELLS = 48
_INK, _BAR, _PAPER = (24, 24, 27), (0, 114, 178), (255, 255, 255)


def save_plots(shown: Distributions, directory: Path) -> list[Path]:
    """Write one PNG for each distribution that has numbers; returns the files."""
    directory.mkdir(parents=True, exist_ok=True)
    pictures = {
        "boxes_per_image": _histogram(shown.boxes_per_image, "boxes per image"),
        "area": _histogram(np.sqrt(shown.area), "square root of a box's share of the image", 0, 1),
        "aspect": _histogram(shown.aspect, "log2 of width / height", -4, 4),
        "centres": _heat_map(shown.centre_x, shown.centre_y, "centres of boxes"),
        "box_score": _histogram(shown.box_score, "confidence of boxes", 0, 1),
        "text_score": _histogram(shown.text_score, "confidence of texts", 0, 1),
    }
    written = []
    for name, picture in pictures.items():
        if picture is not None:
            written.append(directory / f"{name}.png")
            with atomic_open(written[-1], "wb", durable=False) as file:
                picture.save(file, format="png")
    return written


def _histogram(
    values: Sequence[float] | np.ndarray,
    title: str,
    low: float | None = None,
    high: float | None = None,
) -> Image.Image | None:
    """Bars from `low` to `high`, where what lies outside goes too; by default of whole numbers."""
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
    picture, draw = _page(title)
    (width, height), most = _SIZE, max(1, int(counts.max()))
    step = (width - 2 * _MARGIN) / len(counts)
    for number, count in enumerate(counts.tolist()):
        left = _MARGIN + number * step
        top = height - _MARGIN - (height - 2 * _MARGIN) * count / most
        if count:
            draw.rectangle((left, top, left + max(1, step - 1), height - _MARGIN), fill=_BAR)
    _axis(draw, f"{edges[0]:g}", f"{edges[-1]:g}")
    draw.text((4, _MARGIN - 6), str(most), fill=_INK, font=_font())
    return picture


def _heat_map(x: Sequence[float], y: Sequence[float], title: str) -> Image.Image | None:
    """The darker, the more; x and y in 0..1 of the image's sides."""
    if not len(x):
        return None
    counts, _, _ = np.histogram2d(y, x, bins=_CELLS, range=((0, 1), (0, 1)))
    # Shades by the root, so that single boxes are seen beside crowds.
    shades = np.sqrt(counts / max(counts.max(), 1))[..., None]
    paper, bar = np.array(_PAPER, float), np.array(_BAR, float)
    cells = Image.fromarray((paper + shades * (bar - paper)).round().astype(np.uint8))
    picture, draw = _page(title)
    side = _SIZE[1] - 2 * _MARGIN
    left = (_SIZE[0] - side) // 2
    picture.paste(cells.resize((side, side), Image.Resampling.NEAREST), (left, _MARGIN))
    draw.rectangle((left, _MARGIN, left + side, _MARGIN + side), outline=_INK)
    return picture


def _page(title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", _SIZE, _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, 12), title, fill=_INK, font=_font())
    return picture, draw


def _axis(draw: ImageDraw.ImageDraw, low: str, high: str) -> None:
    width, height = _SIZE
    draw.line((_MARGIN, height - _MARGIN, width - _MARGIN, height - _MARGIN), fill=_INK)
    draw.text((_MARGIN, height - _MARGIN + 6), low, fill=_INK, font=_font())
    draw.text((width - _MARGIN, height - _MARGIN + 6), high, fill=_INK, font=_font(), anchor="ra")


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(13)
