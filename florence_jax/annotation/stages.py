"""The stages of an annotation: the prompts of an image, and prompts about earlier answers.

    captions, boxes, descriptions, proposals, written text  ->  grounding of each caption, the label
    or description that a box lacks, and a second label where the two contradict  ->  polygons of
    what is left

Filters work between the stages, so that nothing is asked about rejected annotations.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from florence_jax.annotation.boxes import bounds
from florence_jax.annotation.filters import (
    box_rejection_reason,
    contradicts,
    filter_lines,
    filter_phrases,
    filter_proposals,
    filter_regions,
    join_descriptions,
    join_proposals,
    text_rejection_reason,
    unmatched_boxes,
    valid_polygons,
    without_overlaps,
)
from florence_jax.annotation.noun_phrases import Analysis, NounPhraseExtractor, find_phrase
from florence_jax.annotation.schema import Annotation, Level, OCRLine, Phrase, Region, Text
from florence_jax.annotation.settings import AnnotateSettings
from florence_jax.annotation.to_examples import CAPTION_TASKS
from florence_jax.inference.image_encoder import EncodedImage
from florence_jax.inference.requests import Request
from florence_jax.processing.locations import without_locations


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The model's answer to one prompt.

    Attributes:
        value: what `florence_jax.parse` gives for the task, with scores and label_scores.
        score: exp of the mean log-probability of the words.
        error: why the model could not be asked; there is no value then.
    """

    value: Any = None
    score: float = 0.0
    error: str | None = None


# Takes the answer to the request that it comes with.
Read = Callable[[Answer], None]
Step = list[tuple[Request, Read]]


@dataclass(kw_only=True, eq=False)
class ImageAnnotator:
    """An image on its way through the stages.

    Attributes:
        encoded: the image, on the device.
        size: (width, height) of the upright image.
    """

    id: str
    image: str
    encoded: EncodedImage
    size: tuple[int, int]
    settings: AnnotateSettings
    extractor: NounPhraseExtractor
    texts: list[Text] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    lines: list[OCRLine] = field(default_factory=list)
    phrases: list[Phrase] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    _described: list[Region] = field(default_factory=list)
    _proposed: list[Region] = field(default_factory=list)
    # Boxes with certain coordinates, whatever their labels.
    _certain: dict[str, list[tuple[float, ...]]] = field(
        default_factory=lambda: {"regions": [], "ocr": []}
    )
    _analyses: list[Analysis] = field(default_factory=list)

    def stages(self) -> tuple[Callable[[], Step], ...]:
        """The requests of each stage; ask each one after the answers of those before are read."""
        return self._look, self._ground_and_complete, self._outline

    def annotation(self) -> Annotation:
        """The annotation, after every stage."""
        kept = {
            "regions": [region.box for region in self.regions],
            "ocr": [bounds(line.quad) for line in self.lines],
        }
        # A box that suppression took for a duplicate counts as covered too.
        same = min(self.settings.filters.joined, self.settings.filters.overlap)
        lost = {
            kind: unmatched_boxes(boxes, kept[kind], same) for kind, boxes in self._certain.items()
        }
        return Annotation(
            id=self.id,
            image=self.image,
            width=self.size[0],
            height=self.size[1],
            texts=tuple(self.texts),
            regions=tuple(self.regions),
            ocr=tuple(self.lines),
            phrases=tuple(self.phrases),
            rejected={reason: count for reason, count in self.rejected.items() if count},
            lost={kind: count for kind, count in lost.items() if count},
        )

    def _look(self) -> Step:
        step = [
            self._ask(CAPTION_TASKS[level], self._reader(level)) for level in self.settings.levels
        ]
        if self.settings.regions:
            step.append(self._ask("<OD>", self._read_regions))
            step.append(self._ask("<DENSE_REGION_CAPTION>", self._read_descriptions))
            if self.settings.proposals:
                step.append(self._ask("<REGION_PROPOSAL>", self._read_proposals))
        if self.settings.ocr:
            step.append(self._ask("<OCR_WITH_REGION>", self._read_lines))
        return step

    def _ground_and_complete(self) -> Step:
        self.regions = join_descriptions(self.regions, self._described, self.settings.filters)
        self.regions = join_proposals(self.regions, self._proposed, self.settings.filters)
        step: Step = []
        if self.settings.ground:
            step += [
                self._ask("<CAPTION_TO_PHRASE_GROUNDING>", self._grounder(number), text=text.text)
                for number, text in enumerate(self.texts)
            ]
        if self.settings.complete:
            for number, region in enumerate(self.regions):
                for name, task in _REGION_TASKS.items():
                    if getattr(region, name) is None:
                        read = self._completer(number, name)
                        step.append(self._ask(task, read, region=region.box))
                if contradicts(region, self.settings.filters):
                    read = self._arbiter(number)
                    step.append(self._ask(_REGION_TASKS["label"], read, region=region.box))
        return step

    def _outline(self) -> Step:
        if self.settings.complete:
            unnamed = [region for region in self.regions if region.label is None]
            self.rejected["regions: label"] += len(unnamed)
            self.regions = [region for region in self.regions if region.label is not None]
        told = len(self.regions)
        self.regions = [one for one in self.regions if not contradicts(one, self.settings.filters)]
        self.rejected["regions: label against description"] += told - len(self.regions)
        self.regions = without_overlaps(
            "regions: overlap of another label",
            self.regions,
            self.settings.filters.overlap_any,
            self.rejected,
        )
        step: Step = []
        outlined: list[tuple[str, list[Any]]] = []
        if self.settings.polygons != "none":
            outlined.append(("phrases", self.phrases))
        if self.settings.polygons == "all":
            outlined.append(("regions", self.regions))
        # One prompt per box, whatever refers to it.
        users: dict[tuple[float, ...], list[tuple[str, list[Any], int]]] = {}
        for kind, parts in outlined:
            for number, part in enumerate(parts):
                users.setdefault(part.box, []).append((kind, parts, number))
        for box, found in users.items():
            step.append(
                self._ask("<REGION_TO_SEGMENTATION>", self._outliner(box, found), region=box)
            )
        return step

    def _ask(self, task: str, read: Callable[[Answer], None], **asked: Any) -> tuple[Request, Read]:
        def checked(answer: Answer) -> None:
            if answer.error is not None:
                self.rejected[f"{task}: cannot be asked"] += 1
            else:
                read(answer)

        return Request(image=self.encoded, prompt=task, **asked), checked

    def _reader(self, level: Level) -> Read:
        def read(answer: Answer) -> None:
            text = Text(level=level, text=answer.value, score=answer.score)
            analysis = self.extractor(text.text)
            fault = text_rejection_reason(text, analysis, self.settings.filters)
            if fault is not None:
                self.rejected[f"texts: {fault}"] += 1
                return
            self.texts.append(text)
            self._analyses.append(analysis)

        return read

    def _read_regions(self, answer: Answer) -> None:
        self.regions = self._named_regions(answer, "label")

    def _read_descriptions(self, answer: Answer) -> None:
        self._described = self._named_regions(answer, "description")

    def _named_regions(self, answer: Answer, name: str) -> list[Region]:
        regions = [
            Region(box=box, score=score, **{name: label, f"{name}_score": words})
            for box, score, label, words in _boxes(answer.value)
        ]
        self._remember("regions", [(region.box, region.score) for region in regions])
        return filter_regions(regions, self.size, self.settings.filters, self.rejected)

    def _read_proposals(self, answer: Answer) -> None:
        found = [Region(box=box, score=score) for box, score, _, _ in _boxes(answer.value)]
        self._remember("regions", [(region.box, region.score) for region in found])
        self._proposed = filter_proposals(found, self.size, self.settings.filters, self.rejected)

    def _remember(self, kind: str, boxes: Sequence[tuple[Sequence[float], float]]) -> None:
        self._certain[kind] += [
            tuple(box)
            for box, score in boxes
            if box_rejection_reason(box, score, self.size, self.settings.filters) is None
        ]

    def _read_lines(self, answer: Answer) -> None:
        value = answer.value
        lines = [
            OCRLine(quad=tuple(quad), text=text, score=score)
            for quad, text, score in zip(
                value["quad_boxes"], value["labels"], value["scores"], strict=True
            )
        ]
        self._remember("ocr", [(bounds(line.quad), line.score) for line in lines])
        self.lines = filter_lines(
            lines, value["label_scores"], self.size, self.settings.filters, self.rejected
        )

    def _grounder(self, number: int) -> Read:
        def read(answer: Answer) -> None:
            text, phrases = self.texts[number].text, self._analyses[number].phrases
            found: list[Phrase] = []
            places: dict[str, tuple[int, int] | str] = {}
            for box, score, wording, words in _boxes(answer.value):
                if wording not in places:
                    places[wording] = find_phrase(wording, text, phrases)
                place = places[wording]
                if isinstance(place, str):
                    self.rejected[f"phrases: {place}"] += 1
                elif words < self.settings.filters.label_score:
                    self.rejected["phrases: label score"] += 1
                else:
                    start, end = place
                    found.append(
                        Phrase(
                            text=number, start=start, end=end, phrase=wording, box=box, score=score
                        )
                    )
            self.phrases += filter_phrases(found, self.size, self.settings.filters, self.rejected)

        return read

    def _arbiter(self, number: int) -> Read:
        """Keep the one of a contradicting label and description that a second label confirms."""

        def read(answer: Answer) -> None:
            words = without_locations(answer.value)
            if not words or answer.score < self.settings.filters.label_score:
                return
            region = self.regions[number]
            second = dataclasses.replace(region, label=words, label_score=answer.score)
            if words == region.label:
                self.regions[number] = dataclasses.replace(
                    region, description=None, description_score=None
                )
            elif not contradicts(second, self.settings.filters):
                self.regions[number] = second

        return read

    def _completer(self, number: int, name: str) -> Read:
        def read(answer: Answer) -> None:
            words = without_locations(answer.value)
            if not words:
                self.rejected[f"regions: no {name}"] += 1
            elif answer.score < self.settings.filters.label_score:
                self.rejected[f"regions: {name} score"] += 1
            else:
                self.regions[number] = dataclasses.replace(
                    self.regions[number], **{name: words, f"{name}_score": answer.score}
                )

        return read

    def _outliner(self, box: Sequence[float], users: Sequence[tuple[str, list[Any], int]]) -> Read:
        def read(answer: Answer) -> None:
            parts = [part for instance in answer.value["polygons"] for part in instance]
            polygons = valid_polygons(parts, box, self.rejected, users[0][0])
            for _, owners, number in users:
                owners[number] = dataclasses.replace(owners[number], polygons=polygons)

        return read


_REGION_TASKS = {"label": "<REGION_TO_CATEGORY>", "description": "<REGION_TO_DESCRIPTION>"}


def _boxes(value: Any) -> list[tuple[tuple[float, ...], float, str, float]]:
    """(box, its score, label, the label's score) of an answer."""
    return [
        (tuple(map(float, box)), score, label, words)
        for box, score, label, words in zip(
            value["bboxes"], value["scores"], value["labels"], value["label_scores"], strict=True
        )
    ]
