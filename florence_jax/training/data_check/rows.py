"""Read every row of a split: its texts, their lengths, its objects, and what is wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from florence_jax.processing import TASKS, FlorenceTokenizer, parse
from florence_jax.runtime.error_text import row_error_text
from florence_jax.training.data.example import Example, Source, checked_texts
from florence_jax.training.data_check.split import Lengths, Split

# Tokenized together.
_TOGETHER = 512
# A location is one token wherever it is, so any size will do.
_ANY_SIZE = (1000, 1000)
_SHAPES = ("bboxes", "quad_boxes", "polygons")
# More tokens a word than this, and a label is spelt rather than named.
_SPELT = 3


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the rows are measured with.

    Attributes:
        tokenizer: None leaves lengths out.
        max_prompt, max_labels: tokens, see `DataConfig`.
        declared: tasks of the model beside the 15.
    """

    tokenizer: FlorenceTokenizer | None
    max_prompt: int
    max_labels: int
    declared: Collection[str] = ()


def examples_of(source: Source, index: int) -> tuple[Example, ...]:
    """The example of a row, and those of the same image."""
    example = source[index]
    return (example, *example.same_image)


def read_rows(split: Split, limits: Limits, advance: Callable[[int], object]) -> None:
    """Fill in everything that the rows tell without their images.

    Args:
        advance: called with the number of rows that were read.
    """
    lengths: tuple[list[int], list[int]] = [], []
    waiting: list[tuple[str, str, str]] = []

    def measure() -> None:
        if limits.tokenizer is None:
            return
        texts = [text for _, prompt, labels in waiting for text in (prompt, labels)]
        counts = [len(ids) for ids in limits.tokenizer.encode(texts)] if texts else []
        for (where, *_), prompt, labels in zip(waiting, counts[::2], counts[1::2], strict=True):
            lengths[0].append(prompt)
            lengths[1].append(labels)
            for name, count, most in (
                ("prompt", prompt, limits.max_prompt),
                ("labels", labels, limits.max_labels),
            ):
                if count > most:
                    text = f"{count} tokens of {name}, more than max_{name}={most}"
                    split.fault("too long", where, text)
        waiting.clear()

    for source, index in _rows(split.sources):
        split.rows += 1
        try:
            examples = examples_of(source, index)
        # Whatever goes wrong with one row, the others are read; the trainer puts it aside.
        except Exception as error:
            split.fault("row", f"{split.path}:{index}", row_error_text(error))
            advance(1)
            continue
        for example in examples:
            split.tasks[example.task] += 1
            texts = _checked(split, example, limits)
            if texts is not None:
                waiting.append((example.id, *texts))
        if len(waiting) >= _TOGETHER:
            measure()
        advance(1)
    measure()
    if limits.tokenizer is not None:
        split.prompts = Lengths(tokens=np.array(lengths[0], int), limit=limits.max_prompt)
        split.labels = Lengths(tokens=np.array(lengths[1], int), limit=limits.max_labels)
        split.notes += _spelt(split.classes, limits.tokenizer)
    split.notes += _alike(split.classes)


def answer_of(example: Example, size: Sequence[float]) -> Any:
    """The labels as `parse` returns them for the task: a mapping of shapes, or a text."""
    labels = example.labels
    if isinstance(labels, str) and _locates(example.task):
        return parse(labels, example.task, (size[0], size[1]))[example.task]
    return labels


def _rows(sources: Sequence[Source]) -> Iterator[tuple[Source, int]]:
    for source in sources:
        for index in range(len(source)):
            yield source, index


def _locates(task: str) -> bool:
    return task in TASKS and TASKS[task].answer != "pure_text"


def _checked(split: Split, example: Example, limits: Limits) -> tuple[str, str] | None:
    """The texts of an example; None, and a fault, where it cannot be learnt."""
    size = example.size or _ANY_SIZE
    try:
        texts = checked_texts(
            example, (round(size[0]), round(size[1])), np.random.default_rng(0), limits.declared
        )
        answer = answer_of(example, size)
    except Exception as error:
        split.fault("text", example.id, row_error_text(error))
        return None
    if _locates(example.task) and isinstance(answer, Mapping):
        _count(split, example, answer)
    return texts


def _count(split: Split, example: Example, answer: Mapping[str, Any]) -> None:
    shapes = [shape for name in _SHAPES for shape in answer.get(name, ())]
    labels = [
        label
        for name in ("labels", "bboxes_labels", "polygons_labels")
        for label in answer.get(name, ())
    ]
    split.boxes.append(len(shapes))
    split.classes.update(labels if len(labels) == len(shapes) else [""] * len(shapes))
    if not isinstance(example.labels, str):
        return  # what is wrong with these, the reader has said
    if example.labels.strip() and not shapes:
        text = f"{example.labels!r:.80} holds no place that {example.task} reads"
        split.fault("unread", example.id, text)
    seen: Counter[str] = Counter()
    for number, box in enumerate(answer.get("bboxes", ())):
        label = labels[number] if len(labels) == len(shapes) else ""
        shown = f"{label!r} at ({', '.join(f'{side:g}' for side in box)}) thousandths"
        if box[2] <= box[0] or box[3] <= box[1]:
            split.fault("empty", example.id, f"the box of {shown} has no area")
        seen[shown] += 1
    for shown, count in seen.items():
        if count > 1:
            split.fault("repeated", example.id, f"the box of {shown} is there {count} times")


def _spelt(classes: Mapping[str, int], tokenizer: FlorenceTokenizer) -> Iterator[str]:
    """Notes about labels that the tokenizer takes apart into many pieces."""
    labels = [label for label in classes if label.strip()]
    counts = [len(ids) - 2 for ids in tokenizer.encode(labels)] if labels else []
    found = [
        f"{label!r:.40} ({count} tokens)"
        for label, count in zip(labels, counts, strict=True)
        if count > _SPELT * len(label.split())
    ]
    if found:
        yield (
            f"{len(found)} labels are spelt in more than {_SPELT} tokens a word, such as "
            f"{', '.join(found[:4])}: plain words are learnt sooner"
        )


def _alike(classes: Mapping[str, int]) -> Iterator[str]:
    """Notes about labels that differ in case, spaces, hyphens or underscores alone."""
    groups: dict[str, list[str]] = {}
    for label in classes:
        groups.setdefault("".join(filter(str.isalnum, label.casefold())), []).append(label)
    for labels in groups.values():
        if len(labels) > 1:
            shown = ", ".join(f"{label!r} ({classes[label]})" for label in labels)
            yield f"the labels {shown} may be one class: give it one name"
