"""The report of `florence-jax data check`, as text and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from florence_jax.training.data_check.split import KINDS, MENDED, Lengths, Split

_CLASSES = 20
_SHOWN = 5


def report_json(splits: Sequence[Split]) -> dict[str, Any]:
    """{"ok", "wrong", "splits"}: docs/reference/file-formats.md has the fields."""
    wrong = sum(len(split.wrong) for split in splits)
    return {"ok": not wrong, "wrong": wrong, "splits": [split.as_json() for split in splits]}


def report_lines(splits: Sequence[Split]) -> Iterator[str]:
    """The report as lines of text."""
    for split in splits:
        yield f"{split.name}: {split.layout}, {split.path}"
        yield from (f"  {line}" for line in figures_of(split))
        yield from (f"  {line}" for line in _faults(split))
        yield from (f"  note: {note}" for note in split.notes)
    wrong = Counter(fault.kind for split in splits for fault in split.wrong)
    if wrong:
        listed = ", ".join(f"{count} {KINDS[kind]}" for kind, count in wrong.items())
        yield f"wrong: {listed}"
    else:
        yield "nothing is wrong"


def figures_of(split: Split) -> Iterator[str]:
    """Counts, sizes and lengths."""
    tasks = ", ".join(f"{count:,} {task or 'of no task'}" for task, count in split.tasks.items())
    rows = f"{split.rows:,} rows" + (f" ({tasks})" if tasks else "")
    yield f"{rows}, {len(split.images):,} images" if split.images else rows
    if split.images:
        yield f"image sizes: {sizes_of(split)}"
    if split.boxes:
        mean = sum(split.boxes) / len(split.boxes)
        empty = split.boxes.count(0)
        yield (
            f"{split.objects:,} objects: {mean:.1f} a row, at most {max(split.boxes)}, "
            f"{empty:,} rows without any"
        )
        named = [(label, count) for label, count in split.classes.most_common() if label]
        if named:
            more = f", and {len(named) - _CLASSES} more" if len(named) > _CLASSES else ""
            listed = ", ".join(f"{label} {count:,}" for label, count in named[:_CLASSES])
            yield f"{len(named)} classes: {listed}{more}"
    for name, lengths in (("prompts", split.prompts), ("labels", split.labels)):
        if lengths is not None and len(lengths.tokens):
            yield f"{name}: {_length(lengths)}"


def sizes_of(split: Split) -> str:
    """The most frequent image sizes, and the smallest and largest sides."""
    sizes = Counter(split.images.values())
    common = [f"{w} x {h} ({count:,})" for (w, h), count in sizes.most_common(3)]
    if len(sizes) <= 3:
        return ", ".join(common)
    widths, heights = zip(*sizes, strict=True)
    return (
        f"{', '.join(common)}, and {len(sizes) - 3} more; widths {min(widths)} to {max(widths)}, "
        f"heights {min(heights)} to {max(heights)}"
    )


def _length(lengths: Lengths) -> str:
    shown = lengths.as_json()
    return (
        f"{shown['mean']:.1f} tokens on average, median {shown['median']}, 95% up to "
        f"{shown['p95']}, at most {shown['max']}; {shown['over']:,} of {shown['rows']:,} are "
        f"longer than {lengths.limit}"
    )


def _faults(split: Split) -> Iterator[str]:
    by_kind: dict[str, list[str]] = {}
    for fault in split.faults:
        by_kind.setdefault(fault.kind, []).append(f"{fault.where}: {fault.text}")
    for kind, found in by_kind.items():
        word = "mended" if kind in MENDED else "wrong"
        yield f"{word}: {len(found)} {KINDS.get(kind, kind)}"
        yield from (f"    {one}" for one in found[:_SHOWN])
        if len(found) > _SHOWN:
            yield f"    ... and {len(found) - _SHOWN} more (--json has all)"
