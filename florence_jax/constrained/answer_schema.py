"""Schema of a request's answer: its kind, and the labels that it may use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from florence_jax.constrained.byte_dfa import LABEL, byte_automaton
from florence_jax.processing.tasks import CLASS_SEPARATOR, TASKS, task_of

AnswerKind = Literal[
    "text",
    "text and region",
    "boxes",
    "labelled boxes",
    "labelled quads",
    "polygons",
    "labelled boxes or polygons",
    "anything",
]
_KIND_OF_ANSWER: dict[str, AnswerKind] = {
    "pure_text": "text",
    "description_with_bboxes": "labelled boxes",
    "bboxes": "boxes",
    "phrase_grounding": "labelled boxes",
    "ocr": "labelled quads",
    "polygons": "polygons",
    "description_with_bboxes_or_polygons": "labelled boxes or polygons",
}
_WITHOUT_LABELS = ("boxes", "polygons")


class AnswerSchema(NamedTuple):
    """The kind of a request's answer, and the labels that it may use (None for any)."""

    kind: AnswerKind
    labels: tuple[str, ...] | None = None


def answer_schema(
    prompt: str, text: str | Sequence[str] | None = None, labels: Sequence[str] | None = None
) -> AnswerSchema:
    """The schema of the answer to a request.

    Args:
        prompt, text: as for `build_prompt`. The classes of open-vocabulary detection are the labels
            of its answer, unless `labels` says otherwise.
        labels: what the answer may call things: the labels of its shapes, or for a task whose
            answer is text the one label that the text is.

    Raises:
        ValueError: labels that an answer cannot hold, or for a task whose answer has none.
    """
    name = task_of(prompt)
    task = TASKS.get(name)
    if task is None:
        kind: AnswerKind = "anything"
    elif task.answer == "pure_text" and task.takes == "region":
        kind = "text and region"
    else:
        kind = _KIND_OF_ANSWER[task.answer]
    if labels is not None:
        if kind in _WITHOUT_LABELS:
            raise ValueError(
                f"the answer to {name} has no labels, got labels={labels!r}: leave them out"
            )
        return AnswerSchema(kind, _checked(labels))
    if name != "<OPEN_VOCABULARY_DETECTION>":
        return AnswerSchema(kind)
    given = prompt.replace(name, "") if text is None else text
    classes = given.split(CLASS_SEPARATOR.strip()) if isinstance(given, str) else given
    classes = [item for item in classes if item.strip()]
    return AnswerSchema(kind, _checked(classes) if classes else None)


def _checked(labels: Sequence[str]) -> tuple[str, ...]:
    if isinstance(labels, str) or not labels or not all(isinstance(item, str) for item in labels):
        raise ValueError(f"labels must be a list of one or more strings, got {labels!r}")
    stripped = tuple(dict.fromkeys(item.strip() for item in labels))
    for label in stripped:
        if not byte_automaton(LABEL).accepts(label):
            raise ValueError(
                f"the label {label!r} cannot be read back from an answer: a label is not empty, "
                "is one line and holds no '<'"
            )
    return stripped
