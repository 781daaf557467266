"""The 15 Florence-2 tasks: their prompts, the input they take, and the kind of answer.

The table is `TASKS`; `build_prompt` turns a task into the sentence the model was trained on, and
`task_of` finds the key a result is filed under. Prompts are those of the reference's
``task_prompts_without_inputs`` and ``task_prompts_with_input`` (processing_florence2.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from florence_jax.processing.locations import box_to_text, check_image_size
from florence_jax.processing.vocabulary import check_no_control_tokens

Compat = Literal["original", "native"] | None
AnswerType = Literal[
    "pure_text",
    "description_with_bboxes",
    "bboxes",
    "phrase_grounding",
    "ocr",
    "polygons",
    "description_with_bboxes_or_polygons",
]

# How Florence-2 separates the classes of one open-vocabulary prompt: a token of its own.
CLASS_SEPARATOR = " <and> "


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row of the task table.

    Attributes:
        token: the name, as ``"<OD>"``.
        prompt: the sentence the model reads; ``{input}`` marks where the input goes.
        takes: what the input is: nothing, a text, or a region of the image.
        answer: how the generated text is parsed.
    """

    token: str
    prompt: str
    takes: Literal["nothing", "text", "region"] = "nothing"
    answer: AnswerType = "pure_text"


# In the reference's order, which decides when a prompt holds two tokens.
TASKS: dict[str, Task] = {
    task.token: task
    for task in (
        Task(token="<OCR>", prompt="What is the text in the image?"),
        Task(
            token="<OCR_WITH_REGION>",
            prompt="What is the text in the image, with regions?",
            answer="ocr",
        ),
        Task(token="<CAPTION>", prompt="What does the image describe?"),
        Task(
            token="<DETAILED_CAPTION>",
            prompt="Describe in detail what is shown in the image.",
        ),
        Task(
            token="<MORE_DETAILED_CAPTION>",
            prompt="Describe with a paragraph what is shown in the image.",
        ),
        Task(
            token="<OD>",
            prompt="Locate the objects with category name in the image.",
            answer="description_with_bboxes",
        ),
        Task(
            token="<DENSE_REGION_CAPTION>",
            prompt="Locate the objects in the image, with their descriptions.",
            answer="description_with_bboxes",
        ),
        Task(
            token="<REGION_PROPOSAL>",
            prompt="Locate the region proposals in the image.",
            answer="bboxes",
        ),
        Task(
            token="<CAPTION_TO_PHRASE_GROUNDING>",
            prompt="Locate the phrases in the caption: {input}",
            takes="text",
            answer="phrase_grounding",
        ),
        Task(
            token="<REFERRING_EXPRESSION_SEGMENTATION>",
            prompt="Locate {input} in the image with mask",
            takes="text",
            answer="polygons",
        ),
        Task(
            token="<REGION_TO_SEGMENTATION>",
            prompt="What is the polygon mask of region {input}",
            takes="region",
            answer="polygons",
        ),
        Task(
            token="<OPEN_VOCABULARY_DETECTION>",
            prompt="Locate {input} in the image.",
            takes="text",
            answer="description_with_bboxes_or_polygons",
        ),
        Task(
            token="<REGION_TO_CATEGORY>",
            prompt="What is the region {input}?",
            takes="region",
        ),
        Task(
            token="<REGION_TO_DESCRIPTION>",
            prompt="What does the region {input} describe?",
            takes="region",
        ),
        Task(
            token="<REGION_TO_OCR>",
            prompt="What text is in the region {input}?",
            takes="region",
        ),
    )
}

_LEADING_NAME = re.compile(r"\s*(<[A-Za-z]\w*>)")
_LOCATION_NAME = re.compile(r"<loc_\d+>")
REGION_TEXT = re.compile(r"(?:<loc_(?:0|[1-9][0-9]{0,2})>){4,}")


def build_prompt(
    prompt: str,
    *,
    text: str | Sequence[str] | None = None,
    region: str | Sequence[float] | np.ndarray | None = None,
    image_size: Sequence[float] | None = None,
    compat: Compat = None,
) -> str:
    """Build the sentence that the tokenizer encodes.

    Args:
        prompt: a task (``"<OD>"``), a task with its input (``"<CAPTION_TO_PHRASE_GROUNDING>a
            car"``, the reference's one-string form), or any free prompt (``"<DocVQA>What is the
            total?"``), which passes unchanged.
        text: the input of a text task. Several classes for open-vocabulary detection are a list,
            joined by the model's ``<and>`` token. After a free prompt it is appended.
        region: the input of a region task: ``(x0, y0, x1, y1)`` in pixels of the image as shown, or
            ready ``<loc_N>`` text.
        image_size: ``(width, height)`` in pixels; needed for a region in pixels.
        compat: ``"original"`` inserts the input as it is, ``"native"`` and None strip it.

    Raises:
        ValueError: input for a task that takes none, the wrong kind of input, two inputs, a region
            in pixels without ``image_size``, or (without ``compat``) special tokens such as </s>.
    """
    check_compat(compat)
    if not isinstance(prompt, str):
        raise ValueError(f"prompt must be a string such as '<OD>', got {type(prompt).__name__}")
    if compat is None:
        for given in (prompt, *([text] if isinstance(text, str) else text or ())):
            check_no_control_tokens(str(given), "the prompt")
    task = TASKS.get(task_of(prompt))
    added = _added_input(task, text, region, image_size)
    if task is None:
        return prompt if added is None else prompt + added

    given = prompt.replace(task.token, "")
    if task.takes == "nothing":
        exact = prompt == task.token or (compat is None and prompt.strip() == task.token)
        if not exact:
            raise ValueError(
                f"{task.token} takes no input and must be the whole prompt, got {prompt!r}; "
                f"pass {task.token!r} alone"
            )
        return task.prompt
    if added is not None and given.strip():
        raise ValueError(
            f"{task.token} got two inputs, {given!r} in the prompt and {added!r} as an argument; "
            "pass one of them"
        )
    content = given if added is None else added
    return task.prompt.replace("{input}", content if compat == "original" else content.strip())


def task_of(prompt: str) -> str:
    """The key of the answer to ``prompt`` in a result.

    A known task token anywhere in the prompt (the reference accepts it anywhere), else a leading
    ``<Name>`` of a fine-tune's own task, else ``"text"``.
    """
    for token in TASKS:
        if token in prompt:
            return token
    name = _LEADING_NAME.match(prompt)
    if name and not _LOCATION_NAME.fullmatch(name[1]):
        return name[1]
    return "text"


def check_compat(compat: str | None) -> None:
    """Check that ``compat`` is None, ``"original"`` or ``"native"``."""
    if compat not in (None, "original", "native"):
        raise ValueError(
            f"compat must be None (this library's convention), 'original' (the model card's code) "
            f"or 'native' (transformers), got {compat!r}"
        )


def _added_input(
    task: Task | None,
    text: str | Sequence[str] | None,
    region: str | Sequence[float] | np.ndarray | None,
    image_size: Sequence[float] | None,
) -> str | None:
    """The ``text=`` or ``region=`` argument as prompt text; None without either."""
    if text is None and region is None:
        return None
    name = task.token if task else "a free prompt"
    if text is not None and region is not None:
        raise ValueError(f"{name} got both text={text!r} and region={region!r}; pass one of them")
    if task is not None and task.takes == "nothing":
        raise ValueError(
            f"{name} takes no input, got text={text!r}, region={region!r}; leave both out"
        )
    if text is not None:
        return _text_input(name, text, several=name == "<OPEN_VOCABULARY_DETECTION>")
    if task is not None and task.takes == "text":
        raise ValueError(f"{name} takes a text, got region={region!r}; pass text= instead")
    return _region_input(name, region, image_size)


def _text_input(name: str, text: str | Sequence[str], *, several: bool) -> str:
    if isinstance(text, str):
        return text
    classes = list(text)
    if not several:
        raise ValueError(
            f"{name} takes one text, got the list {classes!r}; only <OPEN_VOCABULARY_DETECTION> "
            "takes several classes"
        )
    if not classes or not all(isinstance(item, str) and item.strip() for item in classes):
        raise ValueError(
            f"{name} takes a list of one or more class names, each a non-empty string, "
            f"got {classes!r}"
        )
    return CLASS_SEPARATOR.join(item.strip() for item in classes)


def _region_input(
    name: str,
    region: str | Sequence[float] | np.ndarray | None,
    image_size: Sequence[float] | None,
) -> str:
    if isinstance(region, str):
        if not REGION_TEXT.fullmatch(region.strip()):
            raise ValueError(
                f"{name} takes a region as (x0, y0, x1, y1) in pixels or as text of four or more "
                f"tokens <loc_0>..<loc_999>, got the string {region!r}"
            )
        return region
    assert region is not None
    return box_to_text(region, check_image_size(image_size, f"{name} with a region in pixels"))
