"""One number for each task: how much of the labels a model's answers hold.

| task | metric | what counts |
| --- | --- | --- |
| `<OD>` | mAP@0.5 | COCO's average precision at IoU 0.5, mean over the classes |
| `<DENSE_REGION_CAPTION>` | F1@0.5 | boxes with the exact label and IoU >= 0.5 |
| `<OPEN_VOCABULARY_DETECTION>` | F1@0.5 | boxes with the exact label and IoU >= 0.5 |
| `<REGION_PROPOSAL>` | F1@0.5 | boxes with IoU >= 0.5 |
| `<OCR_WITH_REGION>` | F1@0.5 | quads with the exact text and IoU >= 0.5 |
| `<CAPTION_TO_PHRASE_GROUNDING>` | accuracy@0.5 | phrases whose boxes are all found, and no other |
| `<REFERRING_EXPRESSION_SEGMENTATION>` | mIoU | mean IoU of the areas |
| `<REGION_TO_SEGMENTATION>` | mIoU | mean IoU of the areas |
| `<OCR>` and `<REGION_TO_...>` text | exact | answers equal to the letter, regions aside |

Captions have no such number: a data set whose captions can be compared brings its own `Judge`.

F1 pools the counts of all answers: 2 * right / (true + given).
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from florence_jax.evaluation.metrics import (
    Detection,
    anls,
    box_iou,
    mask_iou,
    matched,
    mean_average_precision,
    similarity,
)
from florence_jax.processing import TASKS, parse, task_of
from florence_jax.processing.locations import without_locations
from florence_jax.training.checked import did_you_mean

# What an evaluation measures of all rows together. The lowest is the best of these ...
LOSSES = ("loss", "nll")
# ... and the highest of all others.
_SHARES = ("accuracy",)
# Of each task, behind its name.
_OF_TASKS = (
    "mAP@0.5",
    "F1@0.5",
    "accuracy@0.5",
    "mIoU",
    "exact",
    "similarity",
    "ANLS",
)


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A row of a data set with what a model made of it.

    Attributes:
        prefix, labels: the row's prompt and the text to be generated.
        answer: the text that was generated, or the pipeline's result for it, `{task: value}`, whose
            confidences then rank the boxes of `<OD>`. Text ranks them as they stand.
        image_size: (width, height) in pixels.
    """

    prefix: str
    labels: str
    answer: str | Mapping[str, Any]
    image_size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Score:
    """How one task went.

    Attributes:
        metric: the name in the table above.
        value: 0..1, 1 for the truth itself.
        count: answers judged.
        others: further figures, by name.
    """

    metric: str
    value: float
    count: int
    others: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """Truth and answer in the form of `parse`, without the task's key."""

    truth: Any
    answer: Any
    image_size: tuple[int, int]


Judge = Callable[[Sequence[Pair]], Score]


def judge(
    answered: Iterable[Answered], more: Mapping[str, Judge] = types.MappingProxyType({})
) -> dict[str, Score]:
    """The score of every task that was answered, in the order of `TASKS`.

    Args:
        more: judges of further tasks.

    Raises:
        ValueError: a prefix of a task that no judge is for.
    """
    judges = {**_JUDGES, **more}
    pairs: dict[str, list[Pair]] = {}
    for row in answered:
        task = task_of(row.prefix)
        if task not in judges:
            raise ValueError(f"the prefix {row.prefix!r} asks for none of {', '.join(judges)}")
        truth = parse(row.labels, task, row.image_size)[task]
        given = row.answer
        answer = parse(given, task, row.image_size) if isinstance(given, str) else given
        pairs.setdefault(task, []).append(Pair(truth, answer[task], row.image_size))
    return {task: judges[task](pairs[task]) for task in TASKS if task in pairs}


def _detection(pairs: Sequence[Pair]) -> Score:
    found = [(_found(pair.truth), _found(pair.answer)) for pair in pairs]
    f1 = _f1((matched(*pair), len(pair[0])) for pair in found)
    return Score(
        metric="mAP@0.5",
        value=mean_average_precision(found),
        count=len(pairs),
        others={"F1@0.5": f1},
    )


def _boxes(pairs: Sequence[Pair]) -> Score:
    found = [(_found(pair.truth), _found(pair.answer)) for pair in pairs]
    value = _f1((matched(*pair), len(pair[0])) for pair in found)
    return Score(metric="F1@0.5", value=value, count=len(pairs))


def _quads(pairs: Sequence[Pair]) -> Score:
    def right(pair: Pair) -> tuple[list[bool], int]:
        def overlap(a: Sequence[float], b: Sequence[float]) -> float:
            return mask_iou([a], [b], pair.image_size)

        truth, answer = _found(pair.truth), _found(pair.answer)
        return matched(truth, answer, overlap), len(truth)

    return Score(metric="F1@0.5", value=_f1(map(right, pairs)), count=len(pairs))


def _grounding(pairs: Sequence[Pair]) -> Score:
    right = total = 0
    for pair in pairs:
        truth, answer = _by_label(_found(pair.truth)), _by_label(_found(pair.answer))
        total += len(truth)
        for phrase, boxes in truth.items():
            given = answer.get(phrase, [])
            right += len(given) == len(boxes) and all(matched(boxes, given, box_iou))
    return Score(metric="accuracy@0.5", value=share(right, total), count=len(pairs))


def _segmentation(pairs: Sequence[Pair]) -> Score:
    overlaps = [
        mask_iou(_parts(pair.truth), _parts(pair.answer), pair.image_size) for pair in pairs
    ]
    return Score(metric="mIoU", value=share(sum(overlaps), len(pairs)), count=len(pairs))


def _exact(pairs: Sequence[Pair]) -> Score:
    right = sum(without_locations(pair.truth) == without_locations(pair.answer) for pair in pairs)
    return Score(metric="exact", value=share(right, len(pairs)), count=len(pairs))


_JUDGES: dict[str, Judge] = {
    "<OCR>": _exact,
    "<OCR_WITH_REGION>": _quads,
    "<OD>": _detection,
    "<DENSE_REGION_CAPTION>": _boxes,
    "<REGION_PROPOSAL>": _boxes,
    "<CAPTION_TO_PHRASE_GROUNDING>": _grounding,
    "<REFERRING_EXPRESSION_SEGMENTATION>": _segmentation,
    "<REGION_TO_SEGMENTATION>": _segmentation,
    "<OPEN_VOCABULARY_DETECTION>": _boxes,
    "<REGION_TO_CATEGORY>": _exact,
    "<REGION_TO_DESCRIPTION>": _exact,
    "<REGION_TO_OCR>": _exact,
}


def _found(value: Mapping[str, Any]) -> list[Detection]:
    """The boxes or quads of an answer, whatever the task's names for them."""
    prefix = "bboxes_" if "bboxes_labels" in value else ""
    shapes = value["quad_boxes"] if "quad_boxes" in value else value["bboxes"]
    labels = value[f"{prefix}labels"]
    scores = value.get(f"{prefix}scores") or [1.0] * len(shapes)
    return [
        Detection(label=label, shape=shape, score=score)
        for label, shape, score in zip(labels, shapes, scores, strict=True)
    ]


def _parts(value: Mapping[str, Any]) -> list[Sequence[float]]:
    return [part for instance in value["polygons"] for part in instance]


def _by_label(found: Sequence[Detection]) -> dict[str, list[Detection]]:
    groups: dict[str, list[Detection]] = {}
    for one in found:
        groups.setdefault(one.label, []).append(one)
    return groups


def _f1(answers: Iterable[tuple[list[bool], int]]) -> float:
    """The F1 score, from each answer's matches and the number of its true shapes."""
    right = shapes = 0
    for matches, true in answers:
        right += sum(matches)
        shapes += true + len(matches)
    return share(2 * right, shapes)


def share(part: float, whole: float) -> float:
    """part / whole, 0 where there is nothing."""
    return part / whole if whole else 0.0


def metric_problems(
    metric: str, answers: int | None, of_sources: Iterable[str] = ()
) -> Iterator[str]:
    """A sentence where no evaluation has such a metric, which would end the run at the first one.

    Args:
        metric: the setting evaluation.metric.
        answers: the setting evaluation.answers; None where it could not be read.
        of_sources: further metrics of a task, which the valid sources measure.
    """
    if metric in LOSSES or metric in _SHARES:
        return
    of_tasks = (*_OF_TASKS, *dict.fromkeys(of_sources))
    if not metric.endswith(tuple(f" {name}" for name in of_tasks)):
        yield (
            f"evaluation.metric {metric!r} is not measured: expected "
            f"{', '.join((*LOSSES, *_SHARES))}, or a task and one of {', '.join(of_tasks)}, for "
            f"example '<OD> mAP@0.5'{did_you_mean(metric, (*LOSSES, *_SHARES))}"
        )
    elif answers == 0:
        yield (
            f"evaluation.metric {metric!r} is measured in answers, and evaluation.answers=0 "
            "generates none"
        )


def task_scores(answered: Sequence[Answered]) -> dict[str, float]:
    """Every figure by the name "TASK METRIC", 0..1, 1 for the labels themselves.

    Tasks with coordinates are scored by `judge` (mAP@0.5, F1@0.5, accuracy@0.5, mIoU). Answers that
    are text have: "exact", the share equal to the letter; "similarity", 1 minus the edit distance
    over the longer one's length; "ANLS", as DocVQA's challenge counts.
    """
    text, judged = [], []
    for row in answered:
        task = task_of(row.prefix)
        is_text = task not in TASKS or TASKS[task].answer == "pure_text"
        (text if is_text else judged).append(row)
    scores = named_figures(judge(judged))
    by_task: dict[str, list[tuple[str, str]]] = {}
    for row in text:
        by_task.setdefault(task_of(row.prefix), []).append(_texts(row))
    for task, pairs in by_task.items():
        similar = [similarity(*pair) for pair in pairs]
        scores[f"{task} exact"] = _mean(truth == answer for truth, answer in pairs)
        scores[f"{task} similarity"] = _mean(similar)
        scores[f"{task} ANLS"] = _mean(anls([truth], answer) for truth, answer in pairs)
    return scores


def named_figures(scores: Mapping[str, Score]) -> dict[str, float]:
    """The figures of `judge` by the name "TASK METRIC"."""
    figures: dict[str, float] = {}
    for task, score in scores.items():
        figures[f"{task} {score.metric}"] = score.value
        figures |= {f"{task} {name}": value for name, value in score.others.items()}
    return figures


def _texts(row: Answered) -> tuple[str, str]:
    """Truth and answer without the region that some tasks repeat."""
    task = task_of(row.prefix)
    answer = row.answer if isinstance(row.answer, str) else row.answer[task]
    found = (parse(text, task, row.image_size)[task] for text in (row.labels, answer))
    truth, given = (without_locations(text) for text in found)
    return truth, given


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
