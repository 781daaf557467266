"""How good generated answers are, by task: boxes and outlines by `judge`, and text."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from florence_jax.evaluation.metrics import anls, similarity
from florence_jax.processing import TASKS, parse, task_of
from florence_jax.processing.locations import text_to_bins
from florence_jax.training.checked import did_you_mean
from florence_jax.training.metrics.judge import Answered, Score, judge

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


def metric_problems(
    metric: str, answers: int | None, of_sources: Iterable[str] = ()
) -> Iterator[str]:
    """Why no evaluation has such a metric, which would end the run at the first one.

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
    truth, given = (_without_locations(text) for text in found)
    return truth, given


def _without_locations(text: str) -> str:
    for bin in set(text_to_bins(text)):
        text = text.replace(f"<loc_{bin}>", "")
    return text.strip()


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
