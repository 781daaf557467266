"""Regular expressions for labels, boxes, quads and polygons in generated text.

The references describe their answers by regular expressions that take quadratic time on hostile
text. Here the text is scanned once into units (``<loc_N>``, ``<sep>``, ``<poly>``, ``</poly>``),
adjacent units form runs, and every form is read from the runs in linear time. What is found is what
the expressions find: the leftmost label, the greedy run, lines that break a label.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

# Larger numbers than any bin; also what the references' int64 tensors hold at most.
LARGEST_BIN = 2**63 - 1
# Python refuses to convert longer digit strings by default, and no setting may go below this.
_LONGEST_NUMBER = 640

_LOCATION = re.compile(r"<loc_(\d++)>")
_UNIT = re.compile(r"<(?:loc_(\d++)|sep|poly|/poly)>")

# A box or polygon phrase needs this many units in a row, here and in the references.
MIN_UNITS = 4
QUAD_UNITS = 8


class Unit(NamedTuple):
    """One token of the answer grammar, ``text[start:end]``.

    ``kind`` is ``"<loc>"``, ``"<sep>"``, ``"<poly>"`` or ``"</poly>"``; only ``<loc>`` has a
    ``bin``, the others -1.
    """

    kind: str
    start: int
    end: int
    bin: int


Run = list[Unit]


@dataclass(frozen=True, slots=True)
class Phrase:
    """A label ``text[start:label_end]`` and the units that directly follow it."""

    start: int
    label_end: int
    units: Run

    @property
    def end(self) -> int:
        return self.units[-1].end


def location_runs(text: str) -> list[Run]:
    """Maximal runs of adjacent ``<loc_N>``, in order."""
    return _runs(text, _LOCATION)


def polygon_runs(text: str) -> list[Run]:
    """Maximal runs of adjacent ``<loc_N>``, ``<sep>``, ``<poly>`` and ``</poly>``, in order."""
    return _runs(text, _UNIT)


def labelled_phrases(text: str, runs: list[Run], *, inside_units: bool) -> Iterator[Phrase]:
    """Each run of 4 or more units that follows at least one character without ``<``.

    Args:
        text: the cleaned answer.
        runs: its runs.
        inside_units: where no text precedes a run, let the label be the rest of the run's own first
            unit (``loc_7>``), as the references' ``[^<]+`` does; otherwise the run is passed over.
    """
    position = 0
    for run in runs:
        latest = len(run) - MIN_UNITS if inside_units else min(0, len(run) - MIN_UNITS)
        for index in range(latest + 1):
            label_end = run[index].start
            start = max(position, text.rfind("<", position, label_end) + 1)
            if start < label_end:
                yield Phrase(start, label_end, run[index:])
                position = run[-1].end
                break


def unlabelled_phrases(runs: list[Run]) -> Iterator[Phrase]:
    """Each run of 4 or more units, as a phrase with an empty label."""
    for run in runs:
        if len(run) >= MIN_UNITS:
            yield Phrase(run[0].start, run[0].start, run)


def quad_lines(text: str, runs: list[Run]) -> Iterator[Phrase]:
    """Each label within one line followed by 8 locations, left to right.

    The label is the shortest from where the last line ended, so locations that do not complete a
    quad fall into the next label, as in the references.
    """
    position = 0
    for run in runs:
        for index in range(len(run) - QUAD_UNITS + 1):
            label_end = run[index].start
            if label_end <= position:
                continue
            start = max(position, text.rfind("\n", position, label_end) + 1)
            if start < label_end:
                phrase = Phrase(start, label_end, run[index : index + QUAD_UNITS])
                yield phrase
                position = phrase.end


def boxes(units: Run) -> list[Run]:
    """Split locations into boxes of four; the rest is dropped."""
    return [units[index : index + 4] for index in range(0, len(units) - 3, 4)]


def polygon_instances(units: Run) -> list[list[Run]]:
    """The polygons of each instance in a phrase.

    ``<poly>...</poly>`` encloses an instance where both occur, otherwise the phrase is one. Within
    it, a polygon is a run of locations that ends at ``<sep>`` or at the end; of an odd number the
    last is dropped. An instance without polygons is left out.
    """
    kinds = {unit.kind for unit in units}
    enclosed = _enclosed(units) if {"<poly>", "</poly>"} <= kinds else [units]
    return [polygons for inner in enclosed if (polygons := _polygons(inner))]


def _enclosed(units: Run) -> list[Run]:
    inners, opened = [], None
    for index, unit in enumerate(units):
        if unit.kind == "<poly>" and opened is None:
            opened = index + 1
        elif unit.kind == "</poly>" and opened is not None:
            inners.append(units[opened:index])
            opened = None
    return inners


def _polygons(units: Run) -> list[Run]:
    polygons, current = [], []
    for unit in units:
        if unit.kind == "<loc>":
            current.append(unit)
            continue
        if current and unit.kind == "<sep>":
            polygons.append(current)
        current = []
    if current:
        polygons.append(current)
    return [polygon[: len(polygon) // 2 * 2] for polygon in polygons]


def _runs(text: str, pattern: re.Pattern[str]) -> list[Run]:
    runs: list[Run] = []
    end = -1
    for match in pattern.finditer(text):
        digits = match[1]
        unit = Unit(
            kind=match[0] if digits is None else "<loc>",
            start=match.start(),
            end=match.end(),
            bin=-1 if digits is None else _bin(digits),
        )
        if unit.start == end:
            runs[-1].append(unit)
        else:
            runs.append([unit])
        end = unit.end
    return runs


def _bin(digits: str) -> int:
    """Convert a bin, at most `LARGEST_BIN`. ``\\d`` and int() both read every script's digits."""
    if len(digits) > _LONGEST_NUMBER:
        return LARGEST_BIN
    return min(int(digits), LARGEST_BIN)
