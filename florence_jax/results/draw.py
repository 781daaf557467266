"""Draw results: boxes, quads and polygons on the image, captions and read text below it.

Line widths and fonts follow the image size, so a thumbnail and a 4000 px photo both read well. A
label has the same colour in every image. Nothing a model can answer stops a drawing: what has no
place in the frame is left out, and text that does not fit is shortened.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from florence_jax.processing.image.load import load_image
from florence_jax.processing.locations import without_locations
from florence_jax.results.instances import Instance, instances
from florence_jax.results.text_writer import MAX_LINES, TextWriter, best_font, one_line
from florence_jax.runtime.atomic_file import atomic_open
from florence_jax.runtime.error_text import is_of_one_input, row_error_text

# Okabe and Ito's colours (without black) and two of Paul Tol's "muted": nine that stay apart under
# the common colour-vision deficiencies. More would not, so labels may share one; each is named.
PALETTE: tuple[tuple[int, int, int], ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (51, 34, 136),
    (136, 34, 85),
)
_DARK, _LIGHT, _MUTED = (24, 24, 27), (255, 255, 255), (113, 113, 122)

_MAX_CHARACTERS = 10_000  # twice what 1024 tokens spell; bounds the work on text of other origin


def draw_result(
    image: Image.Image | str | os.PathLike,
    result: Mapping[str, Any],
    *,
    line_width: int | None = None,
    font_size: int | None = None,
    fill_opacity: float = 0.35,
    show_scores: bool = True,
    font: str | Path | None = None,
    colours: Mapping[str, tuple[int, int, int]] | None = None,
) -> Image.Image:
    """Draw the result on a copy of the image.

    Args:
        image: a path, or a PIL image of any mode. EXIF orientation is applied first, since results
            are in that frame; transparency is laid over white.
        result: `{task: value}`, coordinates in pixels. Values that are text go in a panel below the
            image, which then grows downwards (and to the right, if it is too narrow for words).
        line_width: pixels. Default: 1 at 200 px, 14 at 4000 x 3000.
        font_size: pixels. Default: 9 at 200 px, 68 at 4000 x 3000.
        fill_opacity: of polygons, 0 to 1. Boxes and quads are outlines.
        show_scores: write a score after each label that has one.
        font: a TrueType or OpenType file. Default: Pillow's own font, or a system font for text
            which that cannot write. Characters that no font has appear as its "missing" box.
        colours: RGB of labels, instead of `label_colour`.

    Returns:
        A new RGB image. Its top left `width x height` pixels are the image, so coordinates stay.

    Raises:
        ValueError: a value of no known form, an option out of range, or (`ImageError`) an image
            that cannot be decoded.
        OSError: `font` cannot be read.
    """
    for name, option in (("line_width", line_width), ("font_size", font_size)):
        if option is not None and option < 1:
            raise ValueError(f"{name} is at least 1 pixel, not {option}")
    if not isinstance(result, Mapping):
        raise ValueError(
            f"the result is {result!r:.200}, expected that of one image, {{task: answer}}"
        )
    if not 0 <= fill_opacity <= 1:
        raise ValueError(f"fill_opacity is between 0 and 1, not {fill_opacity}")
    if isinstance(image, Image.Image):
        # It is in memory already, whatever its size.
        picture = load_image(image, max_pixels=image.width * image.height)
    else:
        picture = load_image(image)
    side = math.sqrt(picture.width * picture.height)
    line_width = line_width or max(1, round(0.004 * side))
    writer = TextWriter(font_size or max(9, round(6 + 0.018 * side)), font and str(font))

    found = [i for v in result.values() for i in instances(v, picture.size)]
    # NaN and infinities have no place; large shapes go first so that they do not cover small ones.
    found = [i for i in found if i.is_finite and _in_frame(i, picture.size)]
    found.sort(key=_extent, reverse=True)
    given = colours or {}
    used = [given.get(i.label) or _colour(i.label, n) for n, i in enumerate(found)]
    for instance, colour in zip(found, used, strict=True):
        _draw_shape(picture, instance, colour, line_width, fill_opacity)
    plates: list[tuple[int, int, int, int]] = []
    for instance, colour in zip(found, used, strict=True):
        _draw_label(picture, instance, colour, writer, line_width, plates, show_scores)

    texts = [(task, value) for task, value in result.items() if isinstance(value, str)]
    return _with_panel(picture, texts, writer) if texts else picture


def save_drawn(image: Image.Image, result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw one result on its image into `path`.

    Raises:
        OSError: it cannot be written; the error names `path`.
        ValueError: a result of no known form.
    """
    drawn = draw_result(image, result)
    with atomic_open(path, "wb", durable=False) as file:
        drawn.save(file, format="png")


def drawing_error(
    image: Image.Image, result: Mapping[str, Any], path: str | os.PathLike[str]
) -> str | None:
    """Draw one result on its image into `path`; returns the error, or None.

    The answer is worth keeping whatever becomes of its drawing, a full disk included.
    """
    try:
        save_drawn(image, result, path)
    except Exception as error:
        if not is_of_one_input(error):
            raise
        return row_error_text(error)
    return None


def label_colour(label: str) -> tuple[int, int, int]:
    """The RGB colour of a label, a function of its text: equal in every image."""
    return PALETTE[zlib.adler32(label.strip().casefold().encode("utf-8", "replace")) % len(PALETTE)]


def _colour(label: str, position: int) -> tuple[int, int, int]:
    # Nameless regions have no colour to keep; neighbours are told apart instead.
    return label_colour(label) if label.strip() else PALETTE[position % len(PALETTE)]


def _ink(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """The more readable of dark and light, by WCAG 2 relative luminance."""
    linear = [((c / 255 + 0.055) / 1.055) ** 2.4 for c in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return _DARK if luminance > 0.18 else _LIGHT


def _in_frame(instance: Instance, size: tuple[int, int]) -> bool:
    x0, y0, x1, y1 = instance.bounds()
    return x0 <= size[0] and y0 <= size[1] and x1 >= 0 and y1 >= 0


def _extent(instance: Instance) -> float:
    x0, y0, x1, y1 = instance.bounds()
    return (x1 - x0) * (y1 - y0)


def _draw_shape(
    picture: Image.Image,
    instance: Instance,
    colour: tuple[int, int, int],
    line_width: int,
    fill_opacity: float,
) -> None:
    # Far corners are brought near: Pillow counts in C ints, and a line's slope outside the frame
    # shows nowhere.
    width, height = picture.size
    halo = max(1, round(line_width / 2))
    for part in instance.parts:
        points = np.clip(part, (-width, -height), (2 * width, 2 * height))
        if instance.kind == "box":
            (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
            corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        else:
            corners = [tuple(point) for point in points.tolist()]
        if not corners:
            continue
        stamp = partial(_stamp, picture, corners, reach=line_width + halo)
        if instance.kind == "polygons" and len(corners) >= 3:
            stamp(colour, fill_opacity, lambda d, p, _: d.polygon(p, fill=255))
        # A rim of the other kind keeps light colours visible on light images, dark on dark.
        stamp(_ink(colour), 0.45, partial(_outline, width=line_width + 2 * halo))
        stamp(colour, 1.0, partial(_outline, width=line_width))


def _outline(
    draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], scale: int, width: int
) -> None:
    width *= scale
    closed = [*points, points[0]]
    draw.line(closed, fill=255, width=width, joint="curve")
    # Round corners: the joint is not drawn where a line closes, nor anything for a single point.
    for x, y in {points[0], points[-1]}:
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)


def _stamp(
    picture: Image.Image,
    points: list[tuple[float, float]],
    colour: tuple[int, int, int],
    opacity: float,
    paint: Callable[[ImageDraw.ImageDraw, list[tuple[float, float]], int], None],
    *,
    reach: int,
) -> None:
    """Blend `colour` where `paint` paints; `reach` is the distance in pixels that it extends beyond
    the points.

    Pillow draws without antialiasing, so small shapes are painted three times as large.
    """
    xs, ys = zip(*points, strict=True)
    left, top = max(0, math.floor(min(xs)) - reach), max(0, math.floor(min(ys)) - reach)
    right = min(picture.width, math.ceil(max(xs)) + reach + 1)
    bottom = min(picture.height, math.ceil(max(ys)) + reach + 1)
    if right <= left or bottom <= top:
        return
    scale = 3 if (right - left) * (bottom - top) <= 1 << 21 else 1
    mask = Image.new("L", ((right - left) * scale, (bottom - top) * scale))
    moved = [((x - left) * scale, (y - top) * scale) for x, y in points]
    paint(ImageDraw.Draw(mask), moved, scale)
    mask = mask.reduce(scale).point(lambda value: value * opacity)
    picture.paste(colour, (left, top, right, bottom), mask)


def _draw_label(
    picture: Image.Image,
    instance: Instance,
    colour: tuple[int, int, int],
    writer: TextWriter,
    line_width: int,
    plates: list[tuple[int, int, int, int]],
    show_scores: bool,
) -> None:
    """Write the label on a plate inside the image, covering no other plate if possible."""
    label = one_line(instance.label[:_MAX_CHARACTERS])
    has_score = show_scores and instance.score is not None and math.isfinite(instance.score)
    score = f"{instance.score:.2f}" if has_score else ""
    x0, y0, x1, y1 = instance.bounds()
    pad = max(1, writer.size // 4)
    # A long phrase may run as far as its box does, or three fifths of the image.
    tail = f" {score}" if label and score else score
    limit = min(picture.width - 2 * pad, max(x1 - x0, 0.6 * picture.width, 6 * writer.size))
    label = writer.shorten(label, limit - writer.length(tail))
    if not label and instance.label.strip() and not score:
        return  # not even an ellipsis fits
    text = f"{label}{tail}" if label else score
    height = writer.line_height + pad
    width = math.ceil(writer.length(text)) + 2 * pad
    if not text or width > picture.width or height > picture.height:
        return

    rim = line_width // 2
    left, right = x0 - rim, x1 + rim - width
    if instance.kind == "polygons":
        # The corner of its box may be far from the polygon: sit on the highest point instead.
        points = np.concatenate(instance.parts)
        left = right = points[points[:, 1].argmin(), 0] - width / 2
    above, below = y0 - rim - height, y1 + rim
    spots = [(left, above), (left, y0 - rim), (left, below), (right, y0 - rim)]
    spots += [(right, below - height), (left, below - height)]
    free = (picture.width - width, picture.height - height)
    inside = np.clip(spots, 0, free).round().astype(int).tolist()
    covered = [sum(_overlap((x, y, x + width, y + height), p) for p in plates) for x, y in inside]
    x, y = inside[covered.index(min(covered))]
    plates.append((x, y, x + width, y + height))
    draw = ImageDraw.Draw(picture)
    draw.rounded_rectangle((x, y, x + width - 1, y + height - 1), max(1, pad // 2), fill=colour)
    writer.write(draw, (x + pad, y + pad // 2), text, _ink(colour))


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _with_panel(
    picture: Image.Image, texts: list[tuple[str, str]], writer: TextWriter
) -> Image.Image:
    """Add a light panel below the image: each task's name, muted, and its text, wrapped."""
    if writer.font is None:  # one face for the whole panel, not one per line
        writer = replace(writer, font=best_font(one_line("".join(text for _, text in texts))))
    pad = writer.size
    width = max(picture.width, 16 * writer.size)
    lines: list[tuple[str, tuple[int, int, int]]] = []
    for task, text in texts:
        lines += [(line, _MUTED) for line in writer.wrap(task, width - 2 * pad)]
        shown = without_locations(text[:_MAX_CHARACTERS]) or "(no text)"
        lines += [(line, _DARK) for line in writer.wrap(shown, width - 2 * pad)]
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], ("…", _DARK)]
    pitch = round(1.2 * writer.line_height)
    canvas = Image.new("RGB", (width, picture.height + 2 * pad + pitch * len(lines)), (250,) * 3)
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for row, (line, ink) in enumerate(lines):
        writer.write(draw, (pad, picture.height + pad + row * pitch), line, ink)
    return canvas
