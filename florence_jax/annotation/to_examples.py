"""What an annotation teaches: the questions of the 15 tasks that it answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from florence_jax.annotation.boxes import bounds
from florence_jax.annotation.schema import Annotation, Coordinates, Level, Phrase, Region
from florence_jax.processing import TASKS, box_to_text, quantize
from florence_jax.processing.compat import UNGROUNDED_PHRASES
from florence_jax.processing.targets import canonical_polygon, region_text, target_text

CAPTION_TASKS: dict[Level, str] = {
    "brief": "<CAPTION>",
    "detailed": "<DETAILED_CAPTION>",
    "more_detailed": "<MORE_DETAILED_CAPTION>",
}
_UNREADABLE = re.compile(r"[<\n]")


@dataclass(frozen=True, kw_only=True)
class Question:
    """A task's question about an image with its answer.

    Attributes:
        task: "<OD>" and so on.
        prompt: what follows the task's token: a text, or a region's <loc_N>.
        answer: text, or what `florence_jax.parse` gives for the task, in pixels.
    """

    task: str
    prompt: str
    answer: str | dict[str, Any]

    def suffix(self, size: tuple[int, int]) -> str:
        """The answer as the model is to write it."""
        return target_text(self.task, self.answer, size, order="given")


def questions(annotation: Annotation, tasks: Sequence[str] = tuple(TASKS)) -> list[Question]:
    """Every question of `tasks` that the annotation answers, in the order of `tasks`.

    Boxes come by their upper, then their left edge, as the reading order of the published answers;
    a phrase's in the order of the text. What a task cannot write (a label with markup) is left out,
    and an image that lost a thing to a doubtful name is not asked for all its things: an answer
    with holes teaches to leave out.

    Raises:
        ValueError: an unknown task.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise ValueError(f"no such task: {unknown}; there are {', '.join(TASKS)}")
    return [
        Question(task=task, prompt=prompt, answer=answer)
        for task in tasks
        for prompt, answer in _ASK[task](annotation)
    ]


_Asked = Iterator[tuple[str, str | dict[str, Any]]]


def _captions(level: Level) -> Callable[[Annotation], _Asked]:
    def ask(annotation: Annotation) -> _Asked:
        for text in annotation.texts:
            if text.level == level and "<" not in text.text:
                yield "", text.text.strip()

    return ask


def _detection(annotation: Annotation) -> _Asked:
    yield from _all_boxes([(one, one.label) for one in _all_regions(annotation)])


def _dense_captions(annotation: Annotation) -> _Asked:
    yield from _all_boxes([(one, one.description) for one in _all_regions(annotation)])


def _all_boxes(named: Sequence[tuple[Region, str | None]]) -> _Asked:
    """Only where every region has a name: an answer that leaves some out would be wrong."""
    if named and all(_is_label(name) for _, name in named):
        yield (
            "",
            {
                "bboxes": [list(region.box) for region, _ in named],
                "labels": [name for _, name in named],
            },
        )


def _proposals(annotation: Annotation) -> _Asked:
    found = _all_regions(annotation)
    if found:
        yield "", {"bboxes": [list(region.box) for region in found]}


def _open_vocabulary(annotation: Annotation) -> _Asked:
    by_label: dict[str, list[Region]] = {}
    for region in _all_regions(annotation):
        if _is_label(region.label):
            by_label.setdefault(str(region.label), []).append(region)
    for label, regions in by_label.items():
        boxes = [list(region.box) for region in regions]
        yield label, {"bboxes": boxes, "bboxes_labels": [label] * len(boxes)}


def _grounding(annotation: Annotation) -> _Asked:
    for number, text in enumerate(annotation.texts):
        found = [phrase for phrase in annotation.phrases if phrase.text == number]
        found = [one for one in found if _is_label(one.phrase) and not _is_ungrounded(one.phrase)]
        if found and "<" not in text.text:
            found.sort(key=lambda phrase: (phrase.start, *_reading(phrase.box)))
            yield (
                text.text.strip(),
                {
                    "bboxes": [list(phrase.box) for phrase in found],
                    "labels": [phrase.phrase for phrase in found],
                },
            )


def _category(annotation: Annotation) -> _Asked:
    for region in _regions(annotation):
        if _is_label(region.label):
            yield _told(annotation, region.box, str(region.label))


def _description(annotation: Annotation) -> _Asked:
    for region in _regions(annotation):
        if _is_label(region.description):
            yield _told(annotation, region.box, str(region.description))


def _told(annotation: Annotation, box: Sequence[float], text: str) -> tuple[str, str]:
    region = box_to_text(box, annotation.size)
    return region, region_text(text, region, annotation.size)


def _segmentation(annotation: Annotation) -> _Asked:
    asked = set()
    for part in (*_regions(annotation), *annotation.phrases):
        region = box_to_text(part.box, annotation.size)
        if region not in asked and _are_writable(part.polygons, annotation.size):
            asked.add(region)
            yield region, _polygons([part.polygons])


def _referring(annotation: Annotation) -> _Asked:
    """Phrases of one region, as a referring expression is."""
    groups: dict[tuple[int, int, int], list[Phrase]] = {}
    for phrase in annotation.phrases:
        groups.setdefault((phrase.text, phrase.start, phrase.end), []).append(phrase)
    asked = set()
    for group in groups.values():
        phrase = group[0]
        if len(group) > 1 or phrase.phrase in asked or not _is_label(phrase.phrase):
            continue
        if _are_writable(phrase.polygons, annotation.size):
            asked.add(phrase.phrase)
            yield phrase.phrase, _polygons([phrase.polygons])


def _polygons(shapes: Sequence[Sequence[Coordinates]]) -> dict[str, Any]:
    polygons = [[list(part) for part in parts] for parts in shapes]
    return {"polygons": polygons, "labels": [""] * len(polygons)}


def _read_text(annotation: Annotation) -> _Asked:
    lines = _all_lines(annotation)
    if lines:
        yield "", "\n".join(line.text for line in lines)


def _read_lines(annotation: Annotation) -> _Asked:
    lines = _all_lines(annotation)
    if lines:
        yield (
            "",
            {
                "quad_boxes": [list(line.quad) for line in lines],
                "labels": [line.text for line in lines],
            },
        )


def _read_region(annotation: Annotation) -> _Asked:
    for line in _lines(annotation):
        yield _told(annotation, bounds(line.quad), line.text)


_ASK: dict[str, Callable[[Annotation], _Asked]] = {
    **{task: _captions(level) for level, task in CAPTION_TASKS.items()},
    "<OCR>": _read_text,
    "<OCR_WITH_REGION>": _read_lines,
    "<REGION_TO_OCR>": _read_region,
    "<OD>": _detection,
    "<DENSE_REGION_CAPTION>": _dense_captions,
    "<REGION_PROPOSAL>": _proposals,
    "<OPEN_VOCABULARY_DETECTION>": _open_vocabulary,
    "<CAPTION_TO_PHRASE_GROUNDING>": _grounding,
    "<REGION_TO_CATEGORY>": _category,
    "<REGION_TO_DESCRIPTION>": _description,
    "<REGION_TO_SEGMENTATION>": _segmentation,
    "<REFERRING_EXPRESSION_SEGMENTATION>": _referring,
}


def _regions(annotation: Annotation) -> list[Region]:
    return sorted(annotation.regions, key=lambda region: _reading(region.box))


def _all_regions(annotation: Annotation) -> list[Region]:
    """None where one is lost."""
    return [] if annotation.lost.get("regions") else _regions(annotation)


def _all_lines(annotation: Annotation) -> list[Any]:
    """None where one is lost."""
    return [] if annotation.lost.get("ocr") else _lines(annotation)


def _lines(annotation: Annotation) -> list[Any]:
    """Of one line each, as an answer can hold them, in the order in which the model read them."""
    return [line for line in annotation.ocr if _is_label(line.text)]


def _reading(box: Sequence[float]) -> tuple[float, float]:
    return box[1], box[0]


def _is_label(label: str | None) -> bool:
    """Whether an answer can hold it."""
    readable = label is not None and label.strip() and not _UNREADABLE.search(label)
    return bool(readable) and label == str(label).strip()


def _is_ungrounded(phrase: str) -> bool:
    return phrase in UNGROUNDED_PHRASES


def _are_writable(polygons: Sequence[Coordinates], size: tuple[int, int]) -> bool:
    """Whether each polygon is one in bins too."""

    def corners(polygon: Coordinates) -> int:
        points = [polygon[at : at + 2] for at in range(0, len(polygon), 2)]
        return len(canonical_polygon(quantize(points, size)))

    return bool(polygons) and min(map(corners, polygons)) >= 3
