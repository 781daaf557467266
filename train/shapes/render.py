"""A scene as a picture, and which of its pixels belong to what."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from train.shapes.scene import Scene, Shape, Word, font

# Pillow draws without antialiasing: everything is painted at twice the size, then averaged.
FINE = 2

_STRIPES = 0.034  # distance from one stripe, or one dot, to the next, of the picture's side
_EDGE = 0.0065
_PALE, _DARK = 0.82, 0.72  # the second colour of a texture towards white; the edge towards black


def draw(scene: Scene) -> Image.Image:
    """The RGB picture, `config.side` pixels square. The same pixels on every call."""
    rng = scene.stream("pixels")
    side = scene.config.side * FINE
    picture = Image.new("RGB", (side, side), scene.base)
    _draw_clutter(picture, scene, rng)
    for shape in scene.shapes:
        _draw_shape(picture, shape, rng)
    for word in scene.words:
        _draw_word(picture, word)
    return _lit(picture.reduce(FINE), scene, rng)


def owners(scene: Scene) -> np.ndarray:
    """The shape or word that is seen at each point, uint8[FINE * side, FINE * side].

    0 is the background, n the shape or, after the shapes, the word n - 1. A word owns its quad.
    """
    side = scene.config.side * FINE
    image = Image.new("L", (side, side))
    canvas = ImageDraw.Draw(image)
    outlines = [shape.points for shape in scene.shapes] + [word.quad for word in scene.words]
    for number, points in enumerate(outlines, start=1):
        canvas.polygon(_pixels(points, side), fill=number)
    return np.asarray(image)


def _pixels(points: np.ndarray, side: int) -> list[tuple[int, int]]:
    """The pixels in which points of the unit square lie; Pillow's polygons take no fractions."""
    return list(map(tuple, np.floor(points * side).astype(int).tolist()))


def _draw_clutter(picture: Image.Image, scene: Scene, rng: np.random.Generator) -> None:
    """Thin lines and specks of nearly the background's colour."""
    canvas, side = ImageDraw.Draw(picture), picture.width
    for _ in range(rng.integers(*scene.config.clutter, endpoint=True)):
        x, y, dx, dy = (rng.random(4) * side).tolist()
        shade = int(rng.integers(18, 34)) * (-1 if rng.random() < 0.5 else 1)
        colour = tuple(int(np.clip(level + shade, 0, 255)) for level in scene.base)
        if rng.random() < 0.5:
            width = max(1, round(rng.uniform(0.004, 0.009) * side))
            canvas.line((x, y, dx, dy), fill=colour, width=width)
        else:
            radius = rng.uniform(0.006, 0.014) * side
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _draw_shape(picture: Image.Image, shape: Shape, rng: np.random.Generator) -> None:
    side = picture.width
    pixels = _pixels(shape.points, side)
    left, right = min(x for x, _ in pixels), max(x for x, _ in pixels)
    top, bottom = min(y for _, y in pixels), max(y for _, y in pixels)
    local = [(x - left, y - top) for x, y in pixels]
    size = (right - left + 1, bottom - top + 1)
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).polygon(local, fill=255)
    picture.paste(_patch(shape, local, size, side, rng), (left, top), mask)


def _patch(
    shape: Shape,
    outline: list[tuple[int, int]],
    size: tuple[int, int],
    side: int,
    rng: np.random.Generator,
) -> Image.Image:
    """The shape's surface: a rectangle of `size` pixels, to be cut out along `outline`."""
    pale = tuple(round(level + _PALE * (255 - level)) for level in shape.rgb)
    dark = tuple(round(_DARK * level) for level in shape.rgb)
    patch = Image.new("RGB", size, pale if shape.texture == "outlined" else shape.rgb)
    canvas = ImageDraw.Draw(patch)
    step = _STRIPES * side
    phase = rng.random() * step
    closed = [*outline, outline[0], outline[1]]
    # Rounded joints are slow and show at the corners of polygons alone, not along a curve.
    joint = "curve" if len(outline) <= 12 else None
    if shape.texture == "striped":
        width, height = size
        for at in np.arange(phase - height, width, step).tolist():
            line = (at, 0, at + height, height)
            canvas.line(line, fill=pale, width=round(0.36 * step))
    elif shape.texture == "dotted":
        radius = 0.27 * step
        for x in np.arange(phase, size[0] + step, step).tolist():
            for y in np.arange(phase, size[1] + step, step).tolist():
                canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=pale)
    elif shape.texture == "outlined":
        # Half of a line is cut off with what lies outside.
        width = 2 * max(0.014, 0.13 * shape.radius) * side
        canvas.line(closed, fill=shape.rgb, width=round(width), joint=joint)
    canvas.line(closed, fill=dark, width=round(2 * _EDGE * side), joint=joint)
    return patch


def _draw_word(picture: Image.Image, word: Word) -> None:
    side = picture.width
    face = font(word.height * side)
    left, top, right, bottom = map(round, face.getbbox(word.text, anchor="ls"))
    sheet = Image.new("L", (right - left + 8, bottom - top + 8))
    ImageDraw.Draw(sheet).text((4 - left, 4 - top), word.text, fill=255, font=face, anchor="ls")
    # Pillow turns anticlockwise, here around the centre of the ink.
    ink = sheet.crop(sheet.getbbox())
    ink = ink.rotate(-word.tilt, Image.Resampling.BICUBIC, expand=True)
    left, top = (round(word.centre[axis] * side - ink.size[axis] / 2) for axis in (0, 1))
    picture.paste((word.tone,) * 3, (left, top), ink)


def _lit(picture: Image.Image, scene: Scene, rng: np.random.Generator) -> Image.Image:
    """The picture under light that falls off to one side, with noise on every channel."""
    config = scene.config
    direction = rng.uniform(-1, 1, 2) * config.gradient
    ramp = np.linspace(-1, 1, config.side, dtype=np.float32)
    light = direction[0] / 2 * ramp + direction[1] / 2 * ramp[:, None]
    levels = np.asarray(picture).astype(np.int16)
    levels += light.astype(np.int16)[..., None]
    levels += rng.integers(-config.noise, config.noise + 1, levels.shape, dtype=np.int8)
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
