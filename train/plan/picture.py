"""Draw a ranking: memory by kind against the limit, and the best rate."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from train.plan.bounds import bounds
from train.plan.compiled import Compiled
from train.plan.sweep import Answer

_KINDS = (
    ("parameters", (57, 106, 177)),
    ("frozen", (107, 76, 154)),
    ("optimizer", (62, 150, 81)),
    ("inputs", (148, 139, 61)),
    ("activations", (218, 124, 48)),
    ("temporaries", (160, 160, 160)),
)
_ROW, _LEFT, _BAR, _RIGHT, _TOP = 26, 430, 480, 190, 56


def draw(found: Sequence[Answer], most: int = 40) -> Image.Image:
    """One bar a plan, the best `most` of them, in the order given."""
    shown = list(found)[:most]
    image = Image.new(
        "RGB", (_LEFT + _BAR + _RIGHT, _TOP + _ROW * max(len(shown), 1) + 10), "white"
    )
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    _legend(canvas, font)
    scale = _BAR / max([one.limit for _, one in shown] + [one.peak for _, one in shown] + [1.0])
    for number, (request, compiled) in enumerate(shown):
        top = _TOP + number * _ROW
        canvas.text((8, top + 4), request.short()[:58], "black", font)
        _bar(canvas, compiled, top, scale)
        if compiled.outcome == "fits":
            text = f"{bounds(request, compiled).images_per_second:,.0f} images/s"
        else:
            text = compiled.outcome
        canvas.text((_LEFT + _BAR + 12, top + 4), text, "black", font)
    return image


def _legend(canvas: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont) -> None:
    canvas.text((8, 6), "memory of a device; the line is its limit; rates at best", "black", font)
    left = 8
    for name, colour in _KINDS:
        canvas.rectangle((left, 32, left + 12, 44), fill=colour)
        canvas.text((left + 18, 29), name, "black", font)
        left += 130


def _bar(canvas: ImageDraw.ImageDraw, compiled: Compiled, top: int, scale: float) -> None:
    left = float(_LEFT)
    for name, colour in _KINDS:
        width = getattr(compiled, name) * scale
        canvas.rectangle((left, top + 4, left + width, top + _ROW - 5), fill=colour)
        left += width
    if compiled.peak * scale > left - _LEFT + 1:
        # Too large: the compiler says how much, and not of what.
        edge = (left, top + 4, _LEFT + compiled.peak * scale, top + _ROW - 5)
        canvas.rectangle(edge, outline=(200, 30, 30))
    line = _LEFT + compiled.limit * scale
    canvas.line((line, top, line, top + _ROW - 2), fill=(200, 30, 30), width=2)
