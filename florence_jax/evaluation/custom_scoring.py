"""Scores of custom data, task by task; the truths are in the text that Florence-2 generates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from florence_jax.evaluation.metrics.boxes import Detection, mask_iou, matched
from florence_jax.evaluation.scoring import (
    Outcome,
    Row,
    Scoring,
    answer_value,
    score_captions,
    score_detection,
    score_masks,
    score_phrases,
    score_text,
)
from florence_jax.processing import TASKS, parse, task_of
from florence_jax.processing.locations import without_locations

_CAPTIONS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")


def score_custom(rows: Sequence[Row]) -> dict[str, tuple[list[Row], Outcome]]:
    """The rows of each task, and their scores.

    | task | metric |
    | --- | --- |
    | captions | CIDEr and the other caption metrics |
    | `<OD>` and other boxes with labels | COCO AP over the labels of the truth |
    | `<CAPTION_TO_PHRASE_GROUNDING>` | R@1 of the truth's phrases |
    | polygons | mIoU, oIoU |
    | `<OCR_WITH_REGION>` | F1 of quads: the exact text, at IoU 0.5 |
    | answers in text, prompts of a fine-tune | exact match, ANLS, edit distance |

    Tasks that answer with coordinates leave out the rows whose image could not be read: the truth's
    coordinates are relative to its size.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        task = task_of(row["input"])
        located = task in TASKS and TASKS[task].answer != "pure_text"
        if "width" in row or not located:
            groups.setdefault(task, []).append(row)
    return {task: _SCORERS[_kind(task)][0](task, found) for task, found in groups.items()}


def scorings_of(prefixes: Iterable[str]) -> set[Scoring]:
    """The scoring functions of rows with these prefixes."""
    return {_SCORERS[_kind(task_of(prefix))][1] for prefix in prefixes}


def _kind(task: str) -> str:
    if task in _CAPTIONS:
        return "captions"
    return TASKS[task].answer if task in TASKS else "pure_text"


def _truth(row: Row, task: str) -> Any:
    return parse(row["truth"][0], task, (row["width"], row["height"]))[task]


def _captions(task: str, rows: list[Row]) -> tuple[list[Row], Outcome]:
    return rows, score_captions(rows, {})


def _text(task: str, rows: list[Row]) -> tuple[list[Row], Outcome]:
    """Score text without the region that answers of region tasks repeat."""
    plain: list[Row] = []
    for row in rows:
        answer = answer_value(row)
        text = without_locations(answer) if isinstance(answer, str) else ""
        truths = [without_locations(truth) for truth in row["truth"]]
        plain.append({**row, "truth": truths, "answers": [{"result": {task: text}}]})
    return rows, score_text(plain, {})


def _boxes(task: str, rows: list[Row]) -> tuple[list[Row], Outcome]:
    numbered, images, annotations, names = [], [], [], {}
    for number, row in enumerate(rows, start=1):
        found = _truth(row, task)
        labels = found.get("labels", found.get("bboxes_labels", [""] * len(found["bboxes"])))
        truth = {"bboxes": found["bboxes"], "labels": labels}
        numbered.append({**row, "truth": truth, "image_id": number})
        images.append({"id": number, "width": row["width"], "height": row["height"]})
        for (x0, y0, x1, y1), label in zip(found["bboxes"], labels, strict=True):
            name = " ".join(label.lower().split())
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": names.setdefault(name, len(names) + 1),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for name, number in names.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return numbered, score_detection(numbered, {"coco": content})


def _phrases(task: str, rows: list[Row]) -> tuple[list[Row], Outcome]:
    changed: list[Row] = []
    for row in rows:
        truth, phrases = _truth(row, task), {}
        for box, phrase in zip(truth["bboxes"], truth["labels"], strict=True):
            phrases.setdefault(phrase, []).append(box)
        truth = [{"phrase": phrase, "boxes": boxes} for phrase, boxes in phrases.items()]
        changed.append({**row, "truth": truth})
    return changed, score_phrases(changed, {})


def _masks(task: str, rows: list[Row]) -> tuple[list[Row], Outcome]:
    changed: list[Row] = []
    for row in rows:
        parts = [part for instance in _truth(row, task)["polygons"] for part in instance]
        truth = {"segmentation": parts, "size": [row["width"], row["height"]]}
        changed.append({**row, "truth": truth})
    return changed, score_masks(changed, {})


def _quads(task: str, rows: list[Row]) -> tuple[list[Row], Outcome]:
    right = shapes = 0
    each = []
    for row in rows:
        size = (row["width"], row["height"])

        def overlap(a: Sequence[float], b: Sequence[float], size: Any = size) -> float:
            return mask_iou([a], [b], size)

        answer = answer_value(row)
        truth = _found_quads(_truth(row, task))
        given = _found_quads(answer) if isinstance(answer, Mapping) else []
        hits = sum(matched(truth, given, overlap))
        right, shapes = right + hits, shapes + len(truth) + len(given)
        each.append(2 * hits / (len(truth) + len(given)) if truth or given else 1.0)
    value = 200 * right / shapes if shapes else 100.0
    return rows, Outcome(metric="F1@0.5", value=value, each=each)


def _found_quads(value: Mapping[str, Any]) -> list[Detection]:
    quads, labels = value.get("quad_boxes", []), value.get("labels", [])
    scores = value.get("scores") or [1.0] * len(labels)
    return [
        Detection(label=label, shape=quad, score=score)
        for quad, label, score in zip(quads, labels, scores, strict=True)
    ]


_Scorer = Callable[[str, list[Row]], tuple[list[Row], Outcome]]
# By a task's type of answer: the scorer of its rows, and the function that it scores them with.
_SCORERS: Mapping[str, tuple[_Scorer, Scoring]] = {
    "captions": (_captions, score_captions),
    "pure_text": (_text, score_text),
    "description_with_bboxes": (_boxes, score_detection),
    "description_with_bboxes_or_polygons": (_boxes, score_detection),
    "bboxes": (_boxes, score_detection),
    "phrase_grounding": (_phrases, score_phrases),
    "polygons": (_masks, score_masks),
    "ocr": (_quads, score_text),
}
