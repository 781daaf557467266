"""Results side by side on one sheet: the truth and an answer, or two models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from florence_jax.results.draw import PALETTE, draw_result, label_colour
from florence_jax.results.instances import instances
from florence_jax.results.text_writer import TextWriter
from florence_jax.runtime.atomic_file import atomic_open

# Small images are enlarged to this height, so that labels can be read on them.
_HEIGHT = 448
_GAP = 12
_PAPER, _INK, _MUTED = (255, 255, 255), (24, 24, 27), (113, 113, 122)
# Okabe and Ito's green and red; the marks differ in shape too.
_RIGHT, _WRONG = (0, 128, 92), (200, 60, 0)


def enlarged(picture: Image.Image) -> Image.Image:
    """Enlarge the image to at least `_HEIGHT` pixels of height."""
    factor = max(_HEIGHT / picture.height, 1.0)
    return picture.resize((round(picture.width * factor), round(picture.height * factor)))


def save_side_by_side(
    path: Path,
    picture: Image.Image,
    titled: Mapping[str, Mapping[str, Any]],
    *,
    right: Mapping[str, bool] | None = None,
    note: str = "",
) -> None:
    """Save one image for each result, side by side.

    A label has one colour on the sheet, and no other label has it while the palette lasts.

    Args:
        path: the file.
        picture: what the results are about.
        titled: results, as `parse` returns them for `picture.size`, by what stands above them.
        right: by title, results that a mark and a frame call right or wrong.
        note: stands below.
    """
    marks = right or {}
    labels = (
        one.label
        for result in titled.values()
        for value in result.values()
        for one in instances(value, picture.size)
    )
    colours = distinct_colours(labels)
    drawn = [draw_result(picture, result, colours=colours) for result in titled.values()]
    writer, small = TextWriter(16, None), TextWriter(13, None)
    mark = writer.line_height + 6
    titles = [
        writer.wrap(title, one.width - (mark if title in marks else 0))
        for title, one in zip(titled, drawn, strict=True)
    ]
    width = sum(one.width + _GAP for one in drawn) + _GAP
    top = 8 + writer.line_height * max(map(len, titles)) + 4
    notes = small.wrap(note, width - 2 * _GAP) if note else []
    bottom = top + max(one.height for one in drawn) + 8
    height = bottom + (small.line_height * len(notes) + 8 if notes else 0)
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen, left = ImageDraw.Draw(sheet), _GAP
    for title, lines, one in zip(titled, titles, drawn, strict=True):
        indent = mark if title in marks else 0
        for row, line in enumerate(lines):
            writer.write(pen, (left + indent, 8 + row * writer.line_height), line, _INK)
        sheet.paste(one, (left, top))
        if title in marks:
            _draw_mark(pen, (left, 8), writer.line_height, right=marks[title])
            # A frame says it at a glance where many sheets are looked through.
            frame = (left - 3, top - 3, left + one.width + 2, top + one.height + 2)
            pen.rectangle(frame, outline=_RIGHT if marks[title] else _WRONG, width=3)
        left += one.width + _GAP
    for row, line in enumerate(notes):
        small.write(pen, (_GAP, bottom + row * small.line_height), line, _MUTED)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path, "wb", durable=False) as file:
        sheet.save(file, format="png")


def _draw_mark(
    pen: ImageDraw.ImageDraw, corner: tuple[int, int], size: int, *, right: bool
) -> None:
    """Draw a white tick on green or a white cross on red; not every font has these characters."""
    x, y = corner
    pen.rounded_rectangle((x, y, x + size, y + size), size // 4, fill=_RIGHT if right else _WRONG)
    strokes = (
        [[(0.22, 0.54), (0.42, 0.74), (0.78, 0.28)]]
        if right
        else [[(0.27, 0.27), (0.73, 0.73)], [(0.73, 0.27), (0.27, 0.73)]]
    )
    for stroke in strokes:
        points = [(x + size * across, y + size * down) for across, down in stroke]
        pen.line(points, fill=_PAPER, width=3, joint="curve")


def distinct_colours(labels: Iterable[str]) -> dict[str, tuple[int, int, int]]:
    """A colour for each label: all different if the palette allows, its own if possible."""
    chosen: dict[str, tuple[int, int, int]] = {}
    for label in dict.fromkeys(label for label in labels if label.strip()):
        free = [one for one in PALETTE if one not in chosen.values()]
        own = label_colour(label)
        chosen[label] = own if own in free or not free else free[0]
    return chosen
