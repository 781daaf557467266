"""Filters of a model's annotations; every rejection is counted by its reason."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from florence_jax.annotation.boxes import areas, bounds, enclosed_area, overlaps, suppress
from florence_jax.annotation.noun_phrases import Analysis
from florence_jax.annotation.schema import (
    LEVELS,
    Coordinates,
    OCRLine,
    Phrase,
    Region,
    Text,
)
from florence_jax.annotation.settings import FilterSettings

Part = TypeVar("Part", Region, Phrase, OCRLine)
Size = tuple[int, int]


def text_rejection_reason(text: Text, analysis: Analysis, settings: FilterSettings) -> str | None:
    """Why a caption is rejected: "empty", "score", "too many objects", "too simple", or None."""
    if not text.text.strip():
        return "empty"
    level = LEVELS.index(text.level)
    if text.score < settings.text_score[level]:
        return "score"
    if analysis.objects > settings.most_objects[level]:
        return "too many objects"
    return "too simple" if analysis.complexity < settings.least_complexity else None


def box_rejection_reason(
    box: Sequence[float], score: float, size: Size, settings: FilterSettings
) -> str | None:
    """Why a box is rejected: "degenerate", "tiny", "score", or None."""
    if float(areas(box)) == 0.0:
        return "degenerate"
    least = settings.least_side
    if box[2] - box[0] < least * size[0] or box[3] - box[1] < least * size[1]:
        return "tiny"
    return "score" if score < settings.box_score else None


def filter_regions(
    regions: Sequence[Region], size: Size, settings: FilterSettings, rejected: Counter[str]
) -> list[Region]:
    """The regions of one answer without bad boxes, doubtful labels and duplicates.

    Args:
        rejected: counts "regions: degenerate", "regions: tiny", "regions: score", "regions: label",
            "regions: label score", "regions: overlap" and "regions: overlap of another label".
    """

    def fault(region: Region) -> str | None:
        label, score = named(region)
        if not label:
            return "label"
        found = box_rejection_reason(region.box, region.score, size, settings)
        return found or ("label score" if score < settings.label_score else None)

    kept = _without_faults("regions", regions, fault, rejected)

    def label(region: Region) -> str:
        return (named(region)[0] or "").casefold()

    kept = _without_doubles("regions: overlap", kept, label, settings, rejected)
    return without_overlaps(
        "regions: overlap of another label", kept, settings.overlap_any, rejected
    )


def filter_proposals(
    regions: Sequence[Region], size: Size, settings: FilterSettings, rejected: Counter[str]
) -> list[Region]:
    """Region proposals without bad boxes and duplicates; reasons as in `filter_regions`."""
    kept = _without_faults(
        "regions",
        regions,
        lambda one: box_rejection_reason(one.box, one.score, size, settings),
        rejected,
    )
    return without_overlaps("regions: overlap", kept, settings.overlap, rejected)


def contradicts(region: Region, settings: FilterSettings) -> bool:
    """Whether label and description of one box have too few words in common."""
    if not settings.agreement or not region.label or not region.description:
        return False
    label, description = _words(region.label), _words(region.description)
    return len(label & description) < settings.agreement * len(label)


def unmatched_boxes(
    found: Sequence[Sequence[float]], kept: Sequence[Sequence[float]], least: float
) -> int:
    """Number of boxes that overlap every kept box by less than `least`; duplicates count once."""
    lost: list[Sequence[float]] = []
    for box in found:
        if not (overlaps([box], [*kept, *lost]) >= least).any():
            lost.append(box)
    return len(lost)


def filter_lines(
    lines: Sequence[OCRLine],
    wording_scores: Sequence[float],
    size: Size,
    settings: FilterSettings,
    rejected: Counter[str],
) -> list[OCRLine]:
    """Filter lines of text; reasons as in `filter_regions`, and "text score" and "empty"."""
    doubtful = {
        id(line)
        for line, score in zip(lines, wording_scores, strict=True)
        if score < settings.line_score
    }

    def fault(line: OCRLine) -> str | None:
        if not line.text.strip():
            return "empty"
        if enclosed_area(line.quad) == 0.0:
            return "degenerate"
        found = box_rejection_reason(bounds(line.quad), line.score, size, settings)
        return found or ("text score" if id(line) in doubtful else None)

    kept = _without_faults("ocr", lines, fault, rejected)
    return _without_doubles("ocr: overlap", kept, lambda line: line.text, settings, rejected)


def filter_phrases(
    phrases: Sequence[Phrase], size: Size, settings: FilterSettings, rejected: Counter[str]
) -> list[Phrase]:
    """Filter the grounded phrases of one text; reasons as of regions, and "phrases: duplicate".

    A phrase that was grounded at another place of the text with the same boxes is a duplicate:
    "a dog" and, later on, "the dog".
    """
    kept = _without_faults(
        "phrases",
        phrases,
        lambda one: box_rejection_reason(one.box, one.score, size, settings),
        rejected,
    )
    kept = _without_doubles(
        "phrases: overlap", kept, lambda one: (one.start, one.end), settings, rejected
    )
    return _without_doubles("phrases: duplicate", kept, _wording, settings, rejected)


def valid_polygons(
    polygons: Iterable[Sequence[float]], box: Sequence[float], rejected: Counter[str], kind: str
) -> tuple[Coordinates, ...]:
    """The polygons with an area, if together they match the box that they were asked for.

    Counts "KIND: degenerate polygon", and "KIND: polygon off its box" where the box around all
    of them overlaps `box` by less than half: then none is kept.
    """
    sound = [tuple(map(float, polygon)) for polygon in polygons]
    kept = [one for one in sound if len(one) >= 6 and enclosed_area(one) > 0.0]
    rejected[f"{kind}: degenerate polygon"] += len(sound) - len(kept)
    if not kept:
        return ()
    around = bounds([number for one in kept for number in one])
    if float(overlaps([around], [box])[0, 0]) < 0.5:
        rejected[f"{kind}: polygon off its box"] += len(kept)
        return ()
    return tuple(kept)


def join_descriptions(
    labelled: Sequence[Region], described: Sequence[Region], settings: FilterSettings
) -> list[Region]:
    """Merge regions with a label and regions with a description; each box occurs once.

    Pairs are formed from the largest overlap down, each region in at most one pair; the labelled
    region's box is kept. Regions without a partner stay as they are.
    """
    shared = overlaps([one.box for one in labelled], [one.box for one in described])
    joined, free = list(labelled), set(range(len(described)))
    ranked = sorted(
        ((-float(shared[a, b]), a, b) for a in range(len(joined)) for b in free), key=lambda x: x
    )
    used: set[int] = set()
    for negative, a, b in ranked:
        if -negative < settings.joined:
            break
        if a not in used and b in free:
            joined[a] = dataclasses.replace(
                joined[a],
                description=described[b].description,
                description_score=described[b].description_score,
            )
            used.add(a)
            free.remove(b)
    return joined + [described[b] for b in sorted(free)]


def join_proposals(
    regions: Sequence[Region], proposed: Sequence[Region], settings: FilterSettings
) -> list[Region]:
    """The regions, and the proposals that match none of them."""
    shared = overlaps([one.box for one in proposed], [one.box for one in regions])
    known = shared >= settings.joined
    return [*regions, *(one for number, one in enumerate(proposed) if not known[number].any())]


def named(region: Region) -> tuple[str | None, float]:
    """The region's label, or else its description, with its confidence."""
    if region.label is not None:
        return region.label, 1.0 if region.label_score is None else region.label_score
    score = 1.0 if region.description_score is None else region.description_score
    return region.description, score


def without_overlaps(
    reason: str, parts: Sequence[Part], most: float, rejected: Counter[str]
) -> list[Part]:
    """The parts that non-maximum suppression keeps, in their order."""
    kept = suppress([box_of(part) for part in parts], [part.score for part in parts], most)
    rejected[reason] += len(parts) - len(kept)
    return [parts[number] for number in kept]


def _without_faults(
    kind: str,
    parts: Iterable[Part],
    fault: Callable[[Part], str | None],
    rejected: Counter[str],
) -> list[Part]:
    kept = []
    for part in parts:
        reason = fault(part)
        if reason is None:
            kept.append(part)
        else:
            rejected[f"{kind}: {reason}"] += 1
    return kept


def _without_doubles(
    reason: str,
    parts: Sequence[Part],
    group: Callable[[Part], object],
    settings: FilterSettings,
    rejected: Counter[str],
) -> list[Part]:
    """Non-maximum suppression within each group; the order is kept."""
    groups: dict[object, list[Part]] = {}
    for part in parts:
        groups.setdefault(group(part), []).append(part)
    stay = {
        id(part)
        for members in groups.values()
        for part in without_overlaps(reason, members, settings.overlap, rejected)
    }
    return [part for part in parts if id(part) in stay]


def box_of(part: Region | Phrase | OCRLine) -> Sequence[float]:
    """The part's box, or the box around a line's quad."""
    return bounds(part.quad) if isinstance(part, OCRLine) else part.box


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _wording(phrase: Phrase) -> str:
    words = phrase.phrase.casefold().split()
    return " ".join(words[1:] if words[0] in ("a", "an", "the") and len(words) > 1 else words)
