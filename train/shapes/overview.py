"""Views of a split for a person: a sheet of scenes with their truth, and statistics."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from florence_jax.processing import TASKS, build_prompt, parse
from florence_jax.results.draw import draw_result
from florence_jax.runtime.atomic_file import atomic_open
from train.shapes.captions import holds
from train.shapes.ground_truth import things_seen
from train.shapes.render import draw
from train.shapes.scene import Shape
from train.shapes.tasks import Question, questions
from train.shapes.tokenizer import world_tokenizer
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


def statistics(world: ShapesWorld, count: int) -> str:
    """A report on the first `count` scenes, as Markdown."""
    return f"{_scenes(world, count)}\n\n{_tokens(world, count)}"


def _scenes(world: ShapesWorld, count: int) -> str:
    things, shapes, words, inside, hidden = [], [], [], 0, 0
    for index in range(count):
        scene = world.scene(index)
        seen = things_seen(scene)
        listed = [thing for thing in seen if isinstance(thing.source, Shape)]
        things.append(len(seen))
        shapes.append(len(listed))
        words.append(len(seen) - len(listed))
        inside += any(holds(a, "inside", b) for a in listed for b in listed if a is not b)
        hidden += len(scene.shapes) - len(listed)
    rows = [("things", things), ("shapes", shapes), ("words", words)]
    lines = [f"{name} {np.mean(values):.2f} (at most {max(values)})" for name, values in rows]
    return (
        f"{count} scenes of {world.split}: {', '.join(lines)} each; something inside something in "
        f"{inside / count:.0%}; {hidden} shapes too hidden to be listed."
    )


def _tokens(world: ShapesWorld, count: int) -> str:
    """Lengths with `<s>` and `</s>`."""
    tokenizer = world_tokenizer()
    prompts, targets = defaultdict(list), defaultdict(list)
    for index in range(count):
        for question in world.questions(index):
            prompt, target = tokenizer.encode([build_prompt(question.prefix), question.suffix])
            prompts[question.task].append(len(prompt))
            targets[question.task].append(len(target))
    lines = [
        "| task | prompt tokens, mean / max | target tokens, mean / max |",
        "| --- | --- | --- |",
    ]
    for task in prompts:
        cells = (f"{np.mean(side[task]):.1f} / {max(side[task])}" for side in (prompts, targets))
        lines.append(f"| `{task}` | {' | '.join(cells)} |")
    return "\n".join(lines)
