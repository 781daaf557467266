"""How good generated answers are, by task: what `train.shapes.judge` measures, and text."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from florence_jax.evaluation.metrics import anls, similarity
from florence_jax.processing import TASKS, parse, task_of
from florence_jax.processing.locations import text_to_bins
from florence_jax.training.suggest import did_you_mean
from train.shapes.judge import Answered, judge

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
    "facts",
    "captions with every fact",
    "exact",
    "similarity",
    "ANLS",
)

# Captions of the synthetic world state facts that can be counted; others are compared as text.
_CAPTIONS = {"<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>"}


def metric_problems(metric: str, answers: int | None) -> Iterator[str]:
    """Why no evaluation has such a metric, which would end the run at the first one.

    Args:
        metric: the setting evaluation.metric.
        answers: the setting evaluation.answers; None where it could not be read.
    """
    if metric in LOSSES or metric in _SHARES:
        return
    if not metric.endswith(tuple(f" {name}" for name in _OF_TASKS)):
        yield (
            f"evaluation.metric {metric!r} is not measured: expected "
            f"{', '.join((*LOSSES, *_SHARES))}, or a task and one of {', '.join(_OF_TASKS)}, for "
            f"example '<OD> mAP@0.5'{did_you_mean(metric, (*LOSSES, *_SHARES))}"
        )
    elif answers == 0:
        yield (
            f"evaluation.metric {metric!r} is measured in answers, and evaluation.answers=0 "
            "generates none"
        )


def task_scores(answered: Sequence[Answered], *, world: bool) -> dict[str, float]:
    """Every figure by the name "TASK METRIC", 0..1, 1 for the truth itself.

    Tasks with coordinates are judged as in `train.shapes.judge` (mAP@0.5, F1@0.5, accuracy@0.5,
    mIoU). Answers that are text have: "exact", the share equal to the letter; "similarity", 1 minus
    the edit distance over the longer one's length; "ANLS", as DocVQA's challenge counts.

    Args:
        answered: rows with their answers.
        world: whether they are of the synthetic world, whose captions have facts.
    """
    text, judged = [], []
    for row in answered:
        task = task_of(row.prefix)
        is_text = task not in TASKS or TASKS[task].answer == "pure_text"
        (text if is_text else judged).append(row)
        if world and task in _CAPTIONS:
            judged.append(row)
    scores: dict[str, float] = {}
    for task, score in judge(judged).items():
        scores[f"{task} {score.metric}"] = score.value
        scores |= {f"{task} {name}": value for name, value in score.others.items()}
    by_task: dict[str, list[tuple[str, str]]] = {}
    for row in text:
        by_task.setdefault(task_of(row.prefix), []).append(_texts(row))
    for task, pairs in by_task.items():
        similar = [similarity(*pair) for pair in pairs]
        scores[f"{task} exact"] = _mean(truth == answer for truth, answer in pairs)
        scores[f"{task} similarity"] = _mean(similar)
        scores[f"{task} ANLS"] = _mean(anls([truth], answer) for truth, answer in pairs)
    return scores


def _texts(row: Answered) -> tuple[str, str]:
    """Truth and answer without the region that some tasks repeat."""
    task = task_of(row.prefix)
    answer = row.answer if isinstance(row.answer, str) else row.answer[task]
    found = (parse(text, task, row.image_size)[task] for text in (row.suffix, answer))
    truth, given = (_without_locations(text) for text in found)
    return truth, given


def _without_locations(text: str) -> str:
    for bin in set(text_to_bins(text)):
        text = text.replace(f"<loc_{bin}>", "")
    return text.strip()


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
