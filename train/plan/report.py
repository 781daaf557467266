"""A plan as text, the answer first and then its parts; a ranking of plans as an image."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from train.plan.bounds import PAPER_SAMPLES, Bounds, bounds
from train.plan.compiled import Answer, Compiled, gib
from train.plan.request import PlanRequest

WIDTH = 100


_KINDS = (
    ("parameters", (57, 106, 177)),
    ("frozen", (107, 76, 154)),
    ("optimizer", (62, 150, 81)),
    ("inputs", (148, 139, 61)),
    ("activations", (218, 124, 48)),
    ("temporaries", (160, 160, 160)),
)
_ROW, _LEFT, _BAR, _RIGHT, _TOP = 26, 430, 480, 190, 56


def report(request: PlanRequest, compiled: Compiled) -> str:
    """Lines for a person, of one compiled or refused program."""
    lines = [headline(request, compiled)]
    if compiled.outcome == "too large" and not compiled.temporaries:
        lines += ["", textwrap.indent(compiled.message, "  "), "", *_held(compiled)]
    elif compiled.outcome in ("failed", "no compiler"):
        return "\n".join([*lines, textwrap.indent(compiled.message, "  ")])
    else:
        figures = bounds(request, compiled)
        parts = (_collectives(compiled), _sources(compiled), _speed(request, figures))
        lines += ["", *_held(compiled)]
        for part in parts:
            lines += ["", *part] if part else []
    if compiled.notes:
        lines += ["", "whole on every device, because the mesh does not divide them:"]
        lines += [f"  {note}" for note in compiled.notes[:8]]
        if len(compiled.notes) > 8:
            lines.append(f"  ... and {len(compiled.notes) - 8} more")
    by = f" by {compiled.compiler}" if compiled.compiler else ""
    lines.append(
        f"\ntraced in {compiled.lowering_seconds:.0f} s, compiled in "
        f"{compiled.compiling_seconds:.0f} s{by}"
    )
    return "\n".join(lines)


def headline(request: PlanRequest, compiled: Compiled) -> str:
    machine = request.machine
    what = "training step" if request.program == "train" else "generation loop"
    asked = (
        f"{what} of {request.model}, {request.image_size} px, {request.target_length} tokens, "
        f"batch {request.global_batch}, {request.dtype}, on {machine} ({machine.devices} devices, "
        f"mesh {request.mesh}, rules {request.rules})"
    )
    answer = {
        "fits": f"FITS: {gib(compiled.peak)} of {gib(compiled.limit)} a device",
        "too large": f"DOES NOT FIT in {gib(compiled.limit)} a device",
        "failed": "THE COMPILER FAILED",
        "no compiler": "NOT COMPILED",
    }[compiled.outcome]
    return f"{answer}\n{textwrap.fill(asked, WIDTH)}"


def _held(compiled: Compiled) -> list[str]:
    rows = [
        ("parameters that train", compiled.parameters),
        ("frozen parameters", compiled.frozen),
        ("optimizer, moving average", compiled.optimizer),
        ("batch", compiled.inputs),
        ("activations kept for the backward pass", compiled.activations),
        ("temporaries and program", compiled.temporaries),
        ("together at the fullest moment", compiled.peak),
    ]
    return ["memory of a device"] + [f"  {gib(size):>11}  {name}" for name, size in rows if size]


def _collectives(compiled: Compiled) -> list[str]:
    if not compiled.collectives:
        return ["collectives: none"]
    lines = [
        "collectives of one run, a device",
        f"  {'class':<20}{'count':>7}{'arrays':>13}{'sent':>13}{'between slices':>17}",
    ]
    for kind, one in compiled.collectives.items():
        more = f"  {one.unbounded} of them in a loop that may end sooner" if one.unbounded else ""
        far = gib(one.far_bytes) if one.far_bytes else "-"
        sizes = f"{gib(one.bytes):>13}{gib(one.sent_bytes):>13}{far:>17}"
        lines.append(f"  {kind:<20}{one.count:>7}{sizes}{more}")
    return lines


def _sources(compiled: Compiled) -> list[str]:
    if not compiled.sources:
        return []
    lines = [
        "memory traffic of one run by source, a device",
        f"  {'source':<24}{'share':>7}{'forward':>12}{'backward':>12}{'kernels':>9}",
    ]
    for name, one in compiled.sources.items():
        share = f"{one.bytes / max(compiled.traffic, 1.0):.1%}"
        forward, backward = (
            f"{size / 1e9:.2f} GB" if size else "-" for size in (one.forward, one.backward)
        )
        lines.append(f"  {name:<24}{share:>7}{forward:>12}{backward:>12}{one.kernels:>9}")
    return lines


def _speed(request: PlanRequest, found: Bounds) -> list[str]:
    what = "one step" if request.program == "train" else "one call with the longest answers,"
    rows = [
        (found.compute, f"computing {found.flops / 1e12:,.1f} TFLOP at the peak"),
        (
            found.memory,
            f"moving {found.traffic / 1e9:,.2f} GB through a device's memory: "
            f"{found.intensity:.0f} FLOP a byte, where the chip needs {found.balance:.0f}",
        ),
        (found.links, "collectives within a slice or a host"),
        (found.network, "collectives between slices or hosts"),
    ]
    lines = [f"{what} at best; {found.limit} decides; real ones take longer"]
    lines += [f"  {f'{seconds * 1e3:,.2f} ms':>11}  {text}" for seconds, text in rows if seconds]
    lines.append(
        f"  {found.images_per_second:,.0f} images/s, {found.chip_hours:,.2f} chip-hours for a "
        "million images"
    )
    if found.paper_chip_hours:
        paper = " + ".join(f"{n / 1e9:g}B at {side} px" for side, n in PAPER_SAMPLES.items())
        lines.append(
            f"  {found.paper_chip_hours:,.0f} chip-hours for the paper's {paper}: "
            f"{found.paper_chip_hours / request.machine.chips:,.0f} h on this machine"
        )
    return lines


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
