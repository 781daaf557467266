"""Results beside each other on one sheet: the truth and an answer, one model and another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from florence_jax.inference.drawing import draw_result
from florence_jax.runtime.output_file import replaced_file

# Small pictures are enlarged to this height, so that labels can be read on them.
_HEIGHT = 448
_GAP = 12
_PAPER, _INK = (255, 255, 255), (24, 24, 27)


def enlarged(picture: Image.Image) -> Image.Image:
    """The picture, at least `_HEIGHT` pixels high."""
    factor = max(_HEIGHT / picture.height, 1.0)
    return picture.resize((round(picture.width * factor), round(picture.height * factor)))


def save_side_by_side(
    path: Path, picture: Image.Image, titled: Mapping[str, Mapping[str, Any]]
) -> None:
    """One picture for each result, as `parse` returns it for `picture.size`, under its title."""
    drawn = [draw_result(picture, result) for result in titled.values()]
    width = sum(one.width + _GAP for one in drawn) + _GAP
    sheet = Image.new("RGB", (width, max(one.height for one in drawn) + 40), _PAPER)
    pen, font, left = ImageDraw.Draw(sheet), ImageFont.load_default(16), _GAP
    for title, one in zip(titled, drawn, strict=True):
        pen.text((left, 8), _shortened(title, font, one.width), fill=_INK, font=font)
        sheet.paste(one, (left, 32))
        left += one.width + _GAP
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path, "wb", durable=False) as file:
        sheet.save(file, format="png")


def _shortened(text: str, font: Any, width: int) -> str:
    text = " ".join(text.split())
    while text and font.getlength(text) > width:
        text = text[:-2] + "…" if len(text) > 2 else ""
    # Pillow's own font has no letters beyond Latin-1.
    return text.encode("latin-1", "replace").decode("latin-1")
