"""Draw the documentation's pictures with the bundled model: `python docs/_extensions/pictures.py`.

It answers all 15 tasks about held-out scenes and draws each answer as `predict --save-images`
does. `docs/_static/tasks` holds a picture for each task, `docs/_static/front.jpg` six of them.
"""

import dataclasses
import io
from pathlib import Path

from PIL import Image, ImageDraw

from florence_jax.demo import enlarged_answer, shapes_pipeline, show
from florence_jax.results.compare_grid import enlarged
from florence_jax.results.draw import draw_result
from florence_jax.results.text_writer import TextWriter
from florence_jax.runtime.atomic_file import atomic_write

STATIC = Path(__file__).resolve().parents[1] / "_static"
SCENE = "000202"
# Scenes with a better prompt for a task.
SCENES = {"<REFERRING_EXPRESSION_SEGMENTATION>": "000201"}
FRONT = (
    "<OD>",
    "<DENSE_REGION_CAPTION>",
    "<OCR_WITH_REGION>",
    "<REGION_TO_SEGMENTATION>",
    "<CAPTION_TO_PHRASE_GROUNDING>",
    "<DETAILED_CAPTION>",
)
_GAP, _QUALITY = 12, 84


def main() -> None:
    """Write every picture."""
    pipeline = shapes_pipeline()
    settings = dataclasses.replace(pipeline.generation, max_new_tokens=120)
    drawn = {
        one.task: _drawn(one)
        for one in show(pipeline, settings)
        if one.scene == SCENES.get(one.task, SCENE)
    }
    for task, picture in drawn.items():
        _save(picture, STATIC / "tasks" / f"{task.strip('<>').lower()}.jpg")
    _save(_sheet({task: drawn[task] for task in FRONT}), STATIC / "front.jpg")


def _drawn(shown) -> Image.Image:
    picture = enlarged(shown.picture)
    factor = picture.width / shown.picture.width
    return draw_result(picture, {shown.task: enlarged_answer(shown.answer, factor)})


def _sheet(pictures: dict[str, Image.Image]) -> Image.Image:
    """Rows of three pictures, each below its task."""
    writer = TextWriter(18, None)
    named = list(pictures.items())
    rows = [named[start : start + 3] for start in range(0, len(named), 3)]
    width = max(picture.width for picture in pictures.values())
    heights = [max(one.height for _, one in row) + writer.line_height + _GAP for row in rows]
    size = (3 * (width + _GAP) + _GAP, sum(heights) + _GAP)
    sheet = Image.new("RGB", size, (255, 255, 255))
    pen, top = ImageDraw.Draw(sheet), _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, (task, picture) in enumerate(row):
            left = _GAP + column * (width + _GAP)
            writer.write(pen, (left, top), task, (24, 24, 27))
            sheet.paste(picture, (left, top + writer.line_height))
        top += height
    return sheet


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=_QUALITY, optimize=True)
    atomic_write(path, content.getvalue())
    print(f"{path.relative_to(STATIC.parent)}: {picture.width} x {picture.height}")


if __name__ == "__main__":
    main()
