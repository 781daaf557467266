"""Filter boxes, quads and polygons by their score (`--min-score`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from florence_jax.processing import TASKS, task_of

_SHAPES = ("bboxes", "quad_boxes", "polygons")
_COMMON = ("labels", "scores", "label_scores")


def check_scored(prompts: Iterable[str], compat: str | None) -> None:
    """Refuse prompts whose answers have no scores; needs no model.

    Raises:
        ValueError: names the first such prompt.
    """
    for prompt in prompts:
        task = TASKS.get(task_of(prompt))
        answer = "pure_text" if task is None else task.answer
        if answer == "pure_text":
            raise ValueError(
                f"--min-score needs scores, and {prompt!r} is answered by text, which has none: "
                "leave one of the two out"
            )
        if compat == "native" or (compat == "original" and answer != "description_with_bboxes"):
            raise ValueError(
                f"--min-score needs scores, and {prompt!r} has none with --compat {compat}: leave "
                "one of the two out"
            )


def drop_below(result: Mapping[str, Any], least: float | None) -> dict[str, Any]:
    """Drop the shapes whose score is below `least`; None drops nothing.

    Args:
        result: `{task: value}`.
        least: from 0 to 1.

    Raises:
        ValueError: a value without scores.
    """
    if least is None:
        return dict(result)
    return {task: _dropped(task, value, least) for task, value in result.items()}


def _dropped(task: str, value: Any, least: float) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"--min-score needs scores, and the answer to {task} is text")
    kept = dict(value)
    for shape in _SHAPES:
        count = len(value.get(shape) or ())
        if not count:
            continue
        scores = value.get(f"{shape}_scores", value.get("scores"))
        if scores is None:
            raise ValueError(f"--min-score needs scores, and the answer to {task} has none")
        places = [place for place, score in enumerate(scores) if score >= least]
        for column in (shape, f"{shape}_labels", f"{shape}_scores", *_COMMON):
            if column in value and len(value[column]) == count:
                kept[column] = [value[column][place] for place in places]
    return kept
