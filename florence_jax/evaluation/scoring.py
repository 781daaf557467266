"""Scoring functions: from the rows of a run to the scores of a data set.

A row holds the model's answers and, in `truth`, what the data set says. A missing answer (the image
could not be read) counts as an empty one. Scores are percentages, as in the published tables.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from florence_jax.evaluation.metrics import (
    anls,
    bleu,
    box_iou,
    cider,
    cider_d,
    coco_average_precision,
    edit_distance,
    exact_match,
    mask_overlap,
    mean_and_overall_iou,
    meteor,
    recall_at_1,
    rouge_l,
    similarity,
    tokenize,
    vqa_accuracy,
)
from florence_jax.evaluation.metrics.boxes import Detection, coco_mask, import_pycocotools, matched
from florence_jax.evaluation.metrics.captions import MeteorError, meteor_is_installed

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The scores of a task.

    Attributes:
        metric: name of the score that the published tables print.
        value: that score, in percent.
        each: score of each row, 0 (wrong) to 1 (right); the error analysis sorts by it.
        others: further scores by name, in percent; edit distances are in characters.
    """

    metric: str
    value: float
    each: list[float]
    others: dict[str, float] = field(default_factory=dict)


def score_captions(rows: Sequence[Row], _truth: Mapping[str, Any]) -> Outcome:
    """CIDEr-D, CIDEr, BLEU, ROUGE-L, and METEOR if its program is installed."""
    flat = tokenize([reference for row in rows for reference in row["truth"]])
    stretches = iter(flat)
    references = [[next(stretches) for _ in row["truth"]] for row in rows]
    captions = tokenize([_text(row) for row in rows])
    main, plain = cider_d(references, captions), cider(references, captions)
    others = {f"BLEU-{n}": score for n, score in enumerate(bleu(references, captions), start=1)}
    others |= {"ROUGE-L": rouge_l(references, captions)}
    if meteor_is_installed():
        try:
            others["METEOR"] = meteor(references, captions)
        except MeteorError as error:
            warnings.warn(f"METEOR is left out: {error}", stacklevel=2)
    figures = {name: 100 * score.value for name, score in others.items()}
    return Outcome(
        metric="CIDEr",
        value=100 * main.value,
        each=[min(1.0, score / 10) for score in main.each],
        others={"CIDEr, not clipped (first definition)": 100 * plain.value} | figures,
    )


def score_detection(rows: Sequence[Row], truth: Mapping[str, Any]) -> Outcome:
    """COCO AP: with equal scores, as for a model without confidences, and with ours.

    Labels are matched with the names of the categories, ignoring case and underscores. Labels that
    name no category of the data set are left out.
    """
    content = truth["coco"]
    categories = {label_key(category["name"]): category["id"] for category in content["categories"]}
    results, each = [], []
    for row in rows:
        found = _found(row)
        results += [
            {
                "image_id": row["image_id"],
                "category_id": categories[label_key(one.label)],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": one.score,
            }
            for one in found
            for x0, y0, x1, y1 in [one.shape]
            if label_key(one.label) in categories
        ]
        each.append(_f1(row["truth"], found))
    image_ids = [row["image_id"] for row in rows]
    plain = coco_average_precision(content, results, image_ids=image_ids, use_scores=False)
    sure = coco_average_precision(content, results, image_ids=image_ids)
    return Outcome(
        metric="mAP",
        value=100 * plain["AP"],
        each=each,
        # pycocotools gives -1 where the truth has no box of that size.
        others={name: 100 * value for name, value in plain.items() if name != "AP" and value >= 0}
        | {f"{name} with our scores": 100 * value for name, value in sure.items() if value >= 0},
    )


def score_phrases(rows: Sequence[Row], _truth: Mapping[str, Any]) -> Outcome:
    """Recall@1 over phrases: the first box, or the most confident one, against any true box."""
    first, surest, merged, each = [], [], [], []
    for row in rows:
        found = _found(row)
        right = []
        for phrase in row["truth"]:
            own = [one for one in found if label_key(one.label) == label_key(phrase["phrase"])]
            boxes = [one.shape for one in own]
            sure = [one.shape for one in sorted(own, key=lambda one: -one.score)]
            right.append(recall_at_1(phrase["boxes"], boxes))
            surest.append(recall_at_1(phrase["boxes"], sure))
            merged.append(recall_at_1(phrase["boxes"], boxes, merged=True))
        first += right
        each.append(_mean(right))
    return Outcome(
        metric="R@1",
        value=100 * _mean(first),
        each=each,
        others={
            "R@1 of the surest box": 100 * _mean(surest),
            "R@1 against merged boxes": 100 * _mean(merged),
        },
    )


def score_expressions(rows: Sequence[Row], _truth: Mapping[str, Any]) -> Outcome:
    """accuracy@0.5: the first box of each answer against the one true box."""
    first, surest = [], []
    for row in rows:
        found, box = _found(row), row["truth"]["box"]
        sure = max(found, key=lambda one: one.score, default=None)
        first.append(box_iou(box, found[0].shape) if found else 0.0)
        surest.append(box_iou(box, sure.shape) if sure else 0.0)
    return Outcome(
        metric="accuracy",
        value=100 * _mean(overlap >= 0.5 for overlap in first),
        each=first,
        others={
            "accuracy of the surest box": 100 * _mean(overlap >= 0.5 for overlap in surest),
            "mean overlap": 100 * _mean(first),
        },
    )


def score_masks(rows: Sequence[Row], _truth: Mapping[str, Any]) -> Outcome:
    """mIoU and oIoU of referring expression segmentation."""
    areas = []
    for row in rows:
        size = (int(row["truth"]["size"][0]), int(row["truth"]["size"][1]))
        instances = _value(row).get("polygons", [])
        parts = [part for instance in instances for part in instance]
        areas.append(
            mask_overlap(coco_mask(row["truth"]["segmentation"], size), coco_mask(parts, size))
        )
    mean, overall = mean_and_overall_iou(areas)
    figures = {
        f"precision@{least}": 100 * _mean(pair.iou >= least for pair in areas)
        for least in (0.5, 0.7, 0.9)
    }
    return Outcome(
        metric="mIoU",
        value=100 * mean,
        each=[pair.iou for pair in areas],
        others={"oIoU": 100 * overall} | figures,
    )


def score_vqa(
    rows: Sequence[Row],
    _truth: Mapping[str, Any],
    *,
    accuracy: Callable[[Sequence[str], str], float] = vqa_accuracy,
) -> Outcome:
    """Accuracy as in the VQA challenge, or of another data set."""
    each = [accuracy(row["truth"], _text(row)) for row in rows]
    exact = _mean(exact_match(row["truth"], _text(row)) for row in rows)
    return Outcome(
        metric="accuracy",
        value=100 * _mean(each),
        each=each,
        others={"equal to one of the answers": 100 * exact},
    )


def score_documents(rows: Sequence[Row], truth: Mapping[str, Any]) -> Outcome:
    """ANLS of DocVQA."""
    outcome = score_text(rows, truth)
    others = dict(outcome.others)
    value = others.pop("ANLS")
    each = [anls(row["truth"], _text(row)) for row in rows]
    return Outcome(metric="ANLS", value=value, each=each, others={"exact": outcome.value} | others)


def score_text(rows: Sequence[Row], _truth: Mapping[str, Any]) -> Outcome:
    """Exact match, ANLS and edit distance of answers in text."""
    exact, near, distances, each = [], [], [], []
    for row in rows:
        answer, truths = _text(row), row["truth"]
        exact.append(exact_match(truths, answer))
        near.append(anls(truths, answer))
        distances.append(min(edit_distance(one, answer) for one in truths))
        each.append(max(similarity(one, answer) for one in truths))
    return Outcome(
        metric="exact match",
        value=100 * _mean(exact),
        each=each,
        others={
            "ANLS": 100 * _mean(near),
            "edit distance": _mean(distances),
            "similarity (1 - edit distance / length)": 100 * _mean(each),
        },
    )


Scoring = Callable[[Sequence[Row], Mapping[str, Any]], Outcome]


def check_programs(scorings: Collection[Scoring]) -> list[str]:
    """Check, before the model runs, that the packages which the scores need are installed.

    Returns:
        A sentence for each score that will be missing.

    Raises:
        ModuleNotFoundError: pycocotools is needed, and missing or broken.
    """
    if score_detection in scorings or score_masks in scorings:
        import_pycocotools()
    if score_captions in scorings and not meteor_is_installed():
        return ['METEOR is left out: it needs Java and pip install "florence-jax[meteor]"']
    return []


def label_key(label: str) -> str:
    """A label in lower case, with single spaces for underscores and repeated spaces."""
    return " ".join(label.replace("_", " ").lower().split())


def answer_value(row: Row) -> Any:
    """The value of the row's answer, text or a mapping; None if there is none."""
    for answer in row.get("answers", ()):
        if "result" in answer:
            return next(iter(answer["result"].values()))
    return None


def _text(row: Row) -> str:
    value = answer_value(row)
    return value if isinstance(value, str) else ""


def _value(row: Row) -> Mapping[str, Any]:
    value = answer_value(row)
    return value if isinstance(value, Mapping) else {}


def _found(row: Row) -> list[Detection]:
    """The boxes of the answer; the score of a box without confidence is 1."""
    value = _value(row)
    prefix = "bboxes_" if "bboxes_labels" in value else ""
    shapes = value.get("bboxes", [])
    scores = value.get(f"{prefix}scores") or [1.0] * len(shapes)
    labels = value.get(f"{prefix}labels") or [""] * len(shapes)
    return [
        Detection(label=label, shape=shape, score=score)
        for label, shape, score in zip(labels, shapes, scores, strict=True)
    ]


def _f1(truth: Mapping[str, Any], found: Sequence[Detection]) -> float:
    """F1 of one image's boxes at IoU 0.5; 1 if neither the truth nor the answer has a box."""
    true = [
        Detection(label=label_key(label), shape=box)
        for box, label in zip(truth["bboxes"], truth["labels"], strict=True)
    ]
    given = [
        Detection(label=label_key(one.label), shape=one.shape, score=one.score) for one in found
    ]
    total = len(true) + len(given)
    return 2 * sum(matched(true, given)) / total if total else 1.0


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else 0.0
