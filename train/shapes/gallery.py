"""A sheet of scenes with their truth drawn on them, for a person to look at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import accumulate

from PIL import Image, ImageDraw, ImageFont

from florence_jax.processing import TASKS, build_prompt, parse
from florence_jax.results.draw import draw_result
from florence_jax.runtime.atomic_file import atomic_open
from train.shapes.render import draw
from train.shapes.tasks import Question, questions
from train.shapes.world import ShapesWorld

_GAP = 10
_ENLARGED = 2
_PAPER, _INK = (255, 255, 255), (60, 60, 66)


def save_gallery(
    world: ShapesWorld,
    path: str | os.PathLike,
    count: int,
    *,
    tasks: Sequence[str] = tuple(TASKS),
) -> None:
    """One row of pictures per scene: as it is, then with the answer to each of `tasks`.

    The answers are read back from the targets' text, so what is drawn is what a model learns.
    """
    rows = []
    for index in range(count):
        scene = world.scene(index)
        side = scene.config.side * _ENLARGED
        enlarged = draw(scene).resize((side, side))
        cells = [_titled(enlarged, f"{world.split} {index}")]
        cells += [
            _titled(_answered(enlarged, question), build_prompt(question.prefix))
            for question in questions(scene, tasks)
        ]
        rows.append(cells)
    kind = Image.registered_extensions().get(os.path.splitext(path)[1].lower(), "PNG")
    with atomic_open(path, "wb") as file:
        _sheet(rows).save(file, format=kind)


def _answered(picture: Image.Image, question: Question) -> Image.Image:
    return draw_result(picture, parse(question.suffix, question.task, picture.size))


def _titled(picture: Image.Image, title: str) -> Image.Image:
    font = ImageFont.load_default(14)
    words, lines = title.split(" "), [""]
    for word in words:
        if font.getlength(f"{lines[-1]} {word}") > picture.width and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    height = 18 * len(lines) + 4
    cell = Image.new("RGB", (picture.width, picture.height + height), _PAPER)
    ImageDraw.Draw(cell).multiline_text((0, 0), "\n".join(lines), fill=_INK, font=font)
    cell.paste(picture, (0, height))
    return cell


def _sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    widths = [sum(cell.width + _GAP for cell in cells) for cells in rows]
    heights = [max(cell.height for cell in cells) + _GAP for cells in rows]
    sheet = Image.new("RGB", (max(widths) + _GAP, sum(heights) + _GAP), _PAPER)
    for cells, top in zip(rows, accumulate([_GAP, *heights]), strict=False):
        lefts = accumulate(cell.width + _GAP for cell in cells)
        for cell, left in zip(cells, [_GAP, *(at + _GAP for at in lefts)], strict=False):
            sheet.paste(cell, (left, top))
    return sheet
