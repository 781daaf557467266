"""Training examples of the 15 tasks from an annotation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from florence_jax.annotation.boxes import bounds
from florence_jax.annotation.schema import Annotation, Coordinates, Level, Phrase, Region
from florence_jax.processing import TASKS, box_to_text, quantize
from florence_jax.processing.compat import UNGROUNDED_PHRASES
from florence_jax.processing.targets import UNREADABLE, canonical_polygon, region_text, target_text

CAPTION_TASKS: dict[Level, str] = {
    "brief": "<CAPTION>",
    "detailed": "<DETAILED_CAPTION>",
    "more_detailed": "<MORE_DETAILED_CAPTION>",
}


@dataclass(frozen=True, kw_only=True)
class TaskExample:
    """A prompt about an image, and its labels.

    Attributes:
        task: "<OD>" and so on.
        prompt: the text behind the task's token: words, or a region's <loc_N>.
        labels: text, or what `florence_jax.parse` returns for the task, in pixels.
    """

    task: str
    prompt: str
    labels: str | dict[str, Any]

    def labels_text(self, size: tuple[int, int]) -> str:
        """The labels as the text that the model learns to generate."""
        return target_text(self.task, self.labels, size, order="given")


def to_examples(annotation: Annotation, tasks: Sequence[str] = tuple(TASKS)) -> list[TaskExample]:
    """Every example of `tasks` that the annotation has labels for, in the order of `tasks`.

    Boxes are ordered by their upper, then their left edge, as in the published model's answers; the
    boxes of phrases are in the order of the text. Labels that a task cannot write (with markup) are
    left out. An image that lost an object to a doubtful name gives no example of all its objects,
    as labels with holes would teach the model to leave objects out.

    Raises:
        ValueError: an unknown task.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise ValueError(f"no such task: {unknown}; there are {', '.join(TASKS)}")
    return [
        TaskExample(task=task, prompt=prompt, labels=labels)
        for task in tasks
        for prompt, labels in _EXAMPLES[task](annotation)
    ]


_Pairs = Iterator[tuple[str, str | dict[str, Any]]]


def _captions(level: Level) -> Callable[[Annotation], _Pairs]:
    def captions(annotation: Annotation) -> _Pairs:
        for text in annotation.texts:
            if text.level == level and "<" not in text.text:
                yield "", text.text.strip()

    return captions


def _all_boxes(field: str) -> Callable[[Annotation], _Pairs]:
    """Only if every region has a `field`: labels that leave some out would be wrong."""

    def all_boxes(annotation: Annotation) -> _Pairs:
        found = _all_regions(annotation)
        labels = [getattr(region, field) for region in found]
        if found and all(map(_is_label, labels)):
            yield "", {"bboxes": [list(region.box) for region in found], "labels": labels}

    return all_boxes


def _proposals(annotation: Annotation) -> _Pairs:
    found = _all_regions(annotation)
    if found:
        yield "", {"bboxes": [list(region.box) for region in found]}


def _open_vocabulary(annotation: Annotation) -> _Pairs:
    by_label: dict[str, list[Region]] = {}
    for region in _all_regions(annotation):
        if _is_label(region.label):
            by_label.setdefault(str(region.label), []).append(region)
    for label, regions in by_label.items():
        boxes = [list(region.box) for region in regions]
        yield label, {"bboxes": boxes, "bboxes_labels": [label] * len(boxes)}


def _grounding(annotation: Annotation) -> _Pairs:
    for number, text in enumerate(annotation.texts):
        found = [phrase for phrase in annotation.phrases if phrase.text == number]
        found = [p for p in found if _is_label(p.phrase) and p.phrase not in UNGROUNDED_PHRASES]
        if found and "<" not in text.text:
            found.sort(key=lambda phrase: (phrase.start, *_reading(phrase.box)))
            yield (
                text.text.strip(),
                {
                    "bboxes": [list(phrase.box) for phrase in found],
                    "labels": [phrase.phrase for phrase in found],
                },
            )


def _each_region(field: str) -> Callable[[Annotation], _Pairs]:
    def each_region(annotation: Annotation) -> _Pairs:
        for region in _regions(annotation):
            label = getattr(region, field)
            if _is_label(label):
                yield _told(annotation, region.box, label)

    return each_region


def _told(annotation: Annotation, box: Sequence[float], text: str) -> tuple[str, str]:
    region = box_to_text(box, annotation.size)
    return region, region_text(text, region, annotation.size)


def _segmentation(annotation: Annotation) -> _Pairs:
    used = set()
    for part in (*_regions(annotation), *annotation.phrases):
        region = box_to_text(part.box, annotation.size)
        if region not in used and _are_writable(part.polygons, annotation.size):
            used.add(region)
            yield region, _polygons([part.polygons])


def _referring(annotation: Annotation) -> _Pairs:
    """Phrases with one region, as referring expressions have."""
    groups: dict[tuple[int, int, int], list[Phrase]] = {}
    for phrase in annotation.phrases:
        groups.setdefault((phrase.text, phrase.start, phrase.end), []).append(phrase)
    used = set()
    for group in groups.values():
        phrase = group[0]
        if len(group) > 1 or phrase.phrase in used or not _is_label(phrase.phrase):
            continue
        if _are_writable(phrase.polygons, annotation.size):
            used.add(phrase.phrase)
            yield phrase.phrase, _polygons([phrase.polygons])


def _polygons(shapes: Sequence[Sequence[Coordinates]]) -> dict[str, Any]:
    polygons = [[list(part) for part in parts] for parts in shapes]
    return {"polygons": polygons, "labels": [""] * len(polygons)}


def _read_text(annotation: Annotation) -> _Pairs:
    lines = _all_lines(annotation)
    if lines:
        yield "", "\n".join(line.text for line in lines)


def _read_lines(annotation: Annotation) -> _Pairs:
    lines = _all_lines(annotation)
    if lines:
        yield (
            "",
            {
                "quad_boxes": [list(line.quad) for line in lines],
                "labels": [line.text for line in lines],
            },
        )


def _read_region(annotation: Annotation) -> _Pairs:
    for line in _lines(annotation):
        yield _told(annotation, bounds(line.quad), line.text)


_EXAMPLES: dict[str, Callable[[Annotation], _Pairs]] = {
    **{task: _captions(level) for level, task in CAPTION_TASKS.items()},
    "<OCR>": _read_text,
    "<OCR_WITH_REGION>": _read_lines,
    "<REGION_TO_OCR>": _read_region,
    "<OD>": _all_boxes("label"),
    "<DENSE_REGION_CAPTION>": _all_boxes("description"),
    "<REGION_PROPOSAL>": _proposals,
    "<OPEN_VOCABULARY_DETECTION>": _open_vocabulary,
    "<CAPTION_TO_PHRASE_GROUNDING>": _grounding,
    "<REGION_TO_CATEGORY>": _each_region("label"),
    "<REGION_TO_DESCRIPTION>": _each_region("description"),
    "<REGION_TO_SEGMENTATION>": _segmentation,
    "<REFERRING_EXPRESSION_SEGMENTATION>": _referring,
}


def _regions(annotation: Annotation) -> list[Region]:
    return sorted(annotation.regions, key=lambda region: _reading(region.box))


def _all_regions(annotation: Annotation) -> list[Region]:
    """Empty if one was lost."""
    return [] if annotation.lost.get("regions") else _regions(annotation)


def _all_lines(annotation: Annotation) -> list[Any]:
    """Empty if one was lost."""
    return [] if annotation.lost.get("ocr") else _lines(annotation)


def _lines(annotation: Annotation) -> list[Any]:
    """Written text that labels can hold (no line breaks), in the order in which it was read."""
    return [line for line in annotation.ocr if _is_label(line.text)]


def _reading(box: Sequence[float]) -> tuple[float, float]:
    return box[1], box[0]


def _is_label(label: str | None) -> bool:
    """Whether labels can hold the text."""
    readable = label is not None and label.strip() and not UNREADABLE.search(label)
    return bool(readable) and label == str(label).strip()


def _are_writable(polygons: Sequence[Coordinates], size: tuple[int, int]) -> bool:
    """Whether each polygon still has three corners when quantized to bins."""

    def corners(polygon: Coordinates) -> int:
        points = [polygon[at : at + 2] for at in range(0, len(polygon), 2)]
        return len(canonical_polygon(quantize(points, size)))

    return bool(polygons) and min(map(corners, polygons)) >= 3
