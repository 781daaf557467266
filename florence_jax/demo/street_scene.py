"""The bundled demonstration picture: a street drawn in code, with the truth about what is on it.

Nothing binary ships with the package, every machine with the same Pillow draws the same pixels, and
the annotations have the form of results (`{task: value}`), so whatever takes a result takes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from PIL import Image, ImageDraw, ImageFont

# The scene is laid out on a sheet of 640 x 480 units and stretched to the size asked for.
_SHEET = (640, 480)
_MIN_SIDE, _MAX_SIDE = 64, 8192

_Point = tuple[float, float]
_Box = tuple[float, float, float, float]

# Boxes (x0, y0, x1, y1) in sheet units. The drawing below is made from them, so they cannot drift
# from the picture.
_SUN: _Box = (520, 34, 592, 106)
_HOUSE: _Box = (70, 132, 290, 350)
_DOOR: _Box = (162, 262, 206, 350)
_WINDOWS: tuple[_Box, ...] = ((98, 252, 142, 296), (226, 252, 270, 296))
_TREE: _Box = (318, 130, 432, 350)
_SIGN: _Box = (458, 214, 598, 350)
_CAR: _Box = (300, 342, 506, 430)
_WHEELS: tuple[_Box, ...] = ((328, 386, 372, 430), (434, 386, 478, 430))
_LINES = ("BAKER STREET", "OPEN 24 HOURS")

_ROOF: tuple[_Point, ...] = ((70, 222), (180, 132), (290, 222))
_WALL: _Box = (86, 222, 274, 350)
_CAR_BODY: tuple[_Point, ...] = (
    *((300, 408), (304, 382), (340, 376), (366, 342), (440, 342), (470, 376)),
    *((500, 384), (506, 408)),
)


def demo_scene(size: tuple[int, int] = _SHEET) -> tuple[Image.Image, dict[str, Any]]:
    """Draws the scene, the same one on every call.

    Args:
      size: (width, height) in pixels, each 64 to 8192. The layout is made for 4:3 and stretches.

    Returns:
      The RGB picture, and the truth as `{task: value}` in the form of results: captions and `<OCR>`
      as str, `<OD>`, `<DENSE_REGION_CAPTION>` and `<CAPTION_TO_PHRASE_GROUNDING>` (of the
      `<CAPTION>`) with boxes, `<OCR_WITH_REGION>` with the quads of the two lines on the sign, and
      `<REFERRING_EXPRESSION_SEGMENTATION>` with the polygons of "the red car". Coordinates are
      pixels of the picture.

    Raises:
      ValueError: a side out of range.
    """
    width, height = size
    if not (_MIN_SIDE <= width <= _MAX_SIDE and _MIN_SIDE <= height <= _MAX_SIDE):
        raise ValueError(f"each side of size is {_MIN_SIDE} to {_MAX_SIDE} pixels, not {size}")
    # Pillow draws without antialiasing: paint larger, then average. Large pictures need it less.
    fine = 4 if max(size) <= 1024 else 2 if max(size) <= 2048 else 1
    sheet = _Sheet((width * fine, height * fine))
    _paint_ground(sheet)
    _paint_house(sheet)
    _paint_tree(sheet)
    lines = _paint_sign(sheet)
    _paint_car(sheet)
    picture = sheet.image.reduce(fine)
    return picture, _annotations((width / _SHEET[0], height / _SHEET[1]), lines)


def _annotations(scale: tuple[float, float], lines: list[_Box]) -> dict[str, Any]:
    def pixels(points: Iterable[float]) -> list[float]:
        return [round(c * scale[n % 2], 2) for n, c in enumerate(points)]

    def boxes(*labelled: tuple[str, _Box]) -> dict[str, Any]:
        return {
            "bboxes": [pixels(box) for _, box in labelled],
            "labels": [label for label, _ in labelled],
        }

    windows = [("window", box) for box in _WINDOWS]
    wheels = [("wheel", box) for box in _WHEELS]
    quads = [pixels((x0, y0, x1, y0, x1, y1, x0, y1)) for x0, y0, x1, y1 in lines]
    outline = pixels(c for point in _CAR_BODY for c in point)
    return {
        "<CAPTION>": "A red car parked in front of a house and a tree.",
        "<DETAILED_CAPTION>": (
            "The image shows a red car parked on the street in front of a yellow house with a "
            "brown roof. There are a green tree, a blue street sign and the sun in the sky."
        ),
        "<OD>": boxes(
            ("car", _CAR),
            ("house", _HOUSE),
            ("tree", _TREE),
            ("street sign", _SIGN),
            ("sun", _SUN),
            ("door", _DOOR),
            *windows,
            *wheels,
        ),
        "<DENSE_REGION_CAPTION>": boxes(
            ("red car parked on the street", _CAR),
            ("yellow house with brown roof", _HOUSE),
            ("green tree with a round crown", _TREE),
            ("blue street sign with white letters", _SIGN),
            ("yellow sun in the sky", _SUN),
        ),
        "<CAPTION_TO_PHRASE_GROUNDING>": boxes(
            ("A red car", _CAR), ("a house", _HOUSE), ("a tree", _TREE)
        ),
        "<REFERRING_EXPRESSION_SEGMENTATION>": {
            "polygons": [[outline, *(pixels(_ring(box)) for box in _WHEELS)]],
            "labels": ["the red car"],
        },
        "<OCR>": "\n".join(_LINES),
        "<OCR_WITH_REGION>": {"quad_boxes": quads, "labels": list(_LINES)},
    }


def _ring(box: _Box, corners: int = 24) -> list[float]:
    """The ellipse in the box, as a flat polygon."""
    x0, y0, x1, y1 = box
    turns = [2 * math.pi * n / corners for n in range(corners)]
    middle, radius = ((x0 + x1) / 2, (y0 + y1) / 2), ((x1 - x0) / 2, (y1 - y0) / 2)
    circle = [(math.cos(turn), math.sin(turn)) for turn in turns]
    return [middle[axis] + radius[axis] * point[axis] for point in circle for axis in (0, 1)]


class _Sheet:
    """A canvas that is drawn on in sheet units."""

    def __init__(self, size: tuple[int, int]):
        self.image = Image.new("RGB", size)
        self._draw = ImageDraw.Draw(self.image)
        self._scale = (size[0] / _SHEET[0], size[1] / _SHEET[1])

    def _at(self, *points: _Point) -> list[_Point]:
        return [(x * self._scale[0], y * self._scale[1]) for x, y in points]

    def box(self, box: _Box, colour: str, *, radius: float = 0) -> None:
        corners = self._at(box[:2], box[2:])
        self._draw.rounded_rectangle(corners, radius * min(self._scale), fill=colour)

    def oval(self, box: _Box, colour: str) -> None:
        self._draw.ellipse(self._at(box[:2], box[2:]), fill=colour)

    def polygon(self, points: Iterable[_Point], colour: str) -> None:
        self._draw.polygon(self._at(*points), fill=colour)

    def text(self, middle: _Point, text: str, height: float, colour: str) -> _Box:
        """Writes one line centred on `middle`; returns the box of its ink in sheet units."""
        font = ImageFont.load_default(max(1, round(height * min(self._scale))))
        (place,) = self._at(middle)
        self._draw.text(place, text, fill=colour, font=font, anchor="mm")
        x0, y0, x1, y1 = self._draw.textbbox(place, text, font=font, anchor="mm")
        x, y = self._scale
        return x0 / x, y0 / y, x1 / x, y1 / y


def _paint_ground(sheet: _Sheet) -> None:
    bands = 48
    for band in range(bands):  # the sky pales towards the horizon
        mix = band / (bands - 1)
        sky = tuple(round(a + (b - a) * mix) for a, b in ((98, 214), (174, 236), (236, 250)))
        top = 350 * band / bands
        sheet.box((0, top, 640, top + 350 / bands + 1), "#{:02x}{:02x}{:02x}".format(*sky))
    sheet.oval(_SUN, "#ffd447")
    for x, y, width in ((60, 70, 120), (330, 48, 140)):
        sheet.box((x, y + 14, x + width, y + 36), "#f8fbff", radius=11)
        sheet.oval((x + width * 0.2, y - 6, x + width * 0.55, y + 34), "#f8fbff")
        sheet.oval((x + width * 0.45, y + 2, x + width * 0.8, y + 34), "#f8fbff")
    sheet.polygon(
        ((0, 330), (180, 268), (400, 322), (560, 280), (640, 304), (640, 352), (0, 352)), "#9cc99b"
    )
    sheet.box((0, 336, 640, 360), "#7db86b")
    sheet.box((0, 356, 640, 376), "#c9c5bd")
    sheet.box((0, 374, 640, 480), "#5b6068")
    for x in range(16, 640, 104):
        sheet.box((x, 448, x + 56, 455), "#e9e4d4")


def _paint_house(sheet: _Sheet) -> None:
    sheet.box((222, 146, 248, 210), "#8a4b3c")
    sheet.box(_WALL, "#f4d58d")
    sheet.polygon(_ROOF, "#8d5a3b")
    sheet.box(_DOOR, "#3d6b58", radius=3)
    sheet.oval((194, 304, 201, 311), "#e8c95a")
    for x0, y0, x1, y1 in _WINDOWS:
        sheet.box((x0, y0, x1, y1), "#fffdf5", radius=2)
        middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
        for left, right in ((x0 + 4, middle_x - 2), (middle_x + 2, x1 - 4)):
            sheet.box((left, y0 + 4, right, middle_y - 2), "#8fc7e8")
            sheet.box((left, middle_y + 2, right, y1 - 4), "#8fc7e8")


def _paint_tree(sheet: _Sheet) -> None:
    x0, y0, x1, y1 = _TREE
    middle = (x0 + x1) / 2
    sheet.polygon(
        ((middle - 9, 236), (middle + 9, 236), (middle + 13, y1), (middle - 13, y1)), "#7a5236"
    )
    sheet.oval((x0, y0 + 40, x0 + 74, y0 + 122), "#3f8f4f")
    sheet.oval((x1 - 74, y0 + 40, x1, y0 + 122), "#3a8549")
    sheet.oval((x0 + 16, y0, x1 - 16, y0 + 90), "#4da05c")


def _paint_sign(sheet: _Sheet) -> list[_Box]:
    """Returns the boxes of the two lines of text."""
    x0, y0, x1, y1 = _SIGN
    middle = (x0 + x1) / 2
    sheet.box((middle - 4, y0 + 40, middle + 4, y1), "#6f757d")
    sheet.box((x0, y0, x1, y0 + 62), "#ffffff", radius=7)
    sheet.box((x0 + 3, y0 + 3, x1 - 3, y0 + 59), "#1f5fa8", radius=5)
    rows = zip(_LINES, (y0 + 20, y0 + 43), (16.5, 14.5), strict=True)
    return [sheet.text((middle, y), line, height, "#ffffff") for line, y, height in rows]


def _paint_car(sheet: _Sheet) -> None:
    sheet.oval((306, 418, 500, 436), "#4a4e55")
    sheet.polygon(_CAR_BODY, "#d6403a")
    sheet.polygon(((350, 376), (371, 349), (399, 349), (399, 376)), "#cfe8f5")
    sheet.polygon(((405, 376), (405, 349), (436, 349), (458, 376)), "#cfe8f5")
    sheet.box((408, 384, 422, 388), "#8e2622", radius=2)
    sheet.oval((492, 386, 504, 396), "#ffe9a3")
    sheet.box((301, 388, 309, 398), "#8e2622")
    for x0, y0, x1, y1 in _WHEELS:
        sheet.oval((x0, y0, x1, y1), "#24262b")
        sheet.oval((x0 + 12, y0 + 12, x1 - 12, y1 - 12), "#b8bcc4")
