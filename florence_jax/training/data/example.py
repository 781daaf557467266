"""A training example before its image is opened, its source, and the order of its labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from etils import epath
from PIL import Image

from florence_jax.datasets.faults import Fault
from florence_jax.processing import FlorenceTokenizer, build_prompt, check_request, parse
from florence_jax.processing.request_check import check_task_of_data
from florence_jax.processing.targets import Order, target_text
from florence_jax.processing.vocabulary import check_locations, check_no_control_tokens

if TYPE_CHECKING:
    from florence_jax.training.metrics.judge import Answered

# A location is one token wherever it is, so any size will do.
_ANY_SIZE = (1000, 1000)
_TOGETHER = 512

ObjectOrder = Literal["random", "as_annotated", "left_to_right", "top_to_bottom", "area", "label"]


class DataError(ValueError):
    """A data set that cannot be read as what it is said to be; names the file and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image, the prompt about it, and the labels to learn.

    Attributes:
        id: says where it comes from, for example "train/annotations.jsonl:17".
        image: a file or an object behind a URL, encoded bytes, or an image.
        task: "<OD>" and so on; "" for a prompt of one's own.
        prompt: The text after the task token: a caption, a region's <loc_N> text, a question.
        labels: text as generated; or, where coordinates may have to move with the image, what
            `florence_jax.processing.parse` returns for the task, in pixels of the image as
            shown (EXIF orientation applied).
        size: (width, height) of the image in whose pixels the labels' coordinates are, where the
            data set says so; None for the image as it is.
        same_image: further examples of this very image, which are learnt beside it: the image
            encoder then runs once for all of them.
        order: in which the labels name objects, where their task has none of its own.
    """

    id: str
    image: Path | epath.Path | bytes | Image.Image
    task: str
    prompt: str
    labels: str | Mapping[str, Any]
    size: tuple[float, float] | None = None
    same_image: tuple[Example, ...] = ()
    order: ObjectOrder = "as_annotated"

    @property
    def prefix(self) -> str:
        return self.task + self.prompt


class Source(ABC):
    """Examples by number, in any order and from any process. Picklable.

    Attributes:
        notes: what was joined, cut or left out when it was opened, for the user.
        faults: single entries that are wrong, as far as opening it has shown.
        labels: the names of the classes, where the data set lists them.
        endless: whether numbers beyond `len` are rows too, of later passes in another order.
    """

    notes: Sequence[str] = ()
    faults: Sequence[Fault] = ()
    labels: Sequence[str] = ()
    endless: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Example: ...

    def longest_texts(self, tokenizer: FlorenceTokenizer, most: tuple[int, int]) -> tuple[int, int]:
        """(tokens of the longest prompt, of the longest labels); every row is read, no image is.

        Rows that cannot be used, and those longer than `most`, are left out, because they end up in
        quarantine. A source whose texts are made and not read overrides this.
        """
        longest = [2, 2]
        for first in range(0, len(self), _TOGETHER):
            texts: list[str] = []
            for index in range(first, min(first + _TOGETHER, len(self))):
                texts += _texts(self, index)
            lengths = [len(ids) for ids in tokenizer.encode(texts)] if texts else []
            for part in (0, 1):
                fitting = [length for length in lengths[part::2] if length <= most[part]]
                longest[part] = max(longest[part], *fitting, 0)
        return longest[0], longest[1]

    def scores(self, answered: Sequence[Answered]) -> dict[str, float]:
        """Figures of a model's answers beside those of every task, by the name "TASK METRIC".

        Their names are the `metrics` of the source's config.
        """
        del answered
        return {}


# The labels of these tasks name objects in no order of their own. Lines of text are read in order,
# and phrases follow their sentence.
UNORDERED_TASKS = frozenset(
    {"<OD>", "<DENSE_REGION_CAPTION>", "<REGION_PROPOSAL>", "<OPEN_VOCABULARY_DETECTION>"}
)
_ORDERS: dict[ObjectOrder, Order] = {
    "random": "random",
    "as_annotated": "given",
    "left_to_right": "left_to_right",
    "top_to_bottom": "reading",
    "area": "area",
    "label": "class",
}


@dataclass(frozen=True)
class Ordered(Source):
    """A source whose labels name objects in this order."""

    source: Source
    order: ObjectOrder

    def __post_init__(self) -> None:
        for name in ("notes", "faults", "labels", "endless"):
            object.__setattr__(self, name, getattr(self.source, name))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        same_image = tuple(replace(one, order=self.order) for one in example.same_image)
        return replace(example, order=self.order, same_image=same_image)


def ordered_labels(example: Example, size: Sequence[int], rng: np.random.Generator) -> str:
    """The text to learn, its objects in the example's order.

    A text in the grammar of its task is read and written again; any other is learnt as it stands.

    Args:
        example: its coordinates are pixels of the image.
        size: (width, height) of the image.
        rng: of the row and the epoch, for "random".

    Raises:
        ValueError: labels that the task cannot express.
    """
    labels, order = example.labels, _ORDERS[example.order]
    if example.task not in UNORDERED_TASKS:
        order = "given"
    if isinstance(labels, str):
        if order == "given":
            return labels
        found = parse(labels, example.task, (size[0], size[1]))[example.task]
        if target_text(example.task, found, size) != labels:
            return labels
        labels = found
    return target_text(
        example.task, labels, size, order=order, rng=rng if order == "random" else None
    )


def checked_texts(
    example: Example,
    size: Sequence[int],
    rng: np.random.Generator,
    declared: Collection[str] = (),
) -> tuple[str, str]:
    """(prompt, labels) as the tokenizer gets them.

    Args:
        example, size, rng: as for `ordered_labels`.
        declared: tasks that the model declares beside the 15.

    Raises:
        ValueError: special tokens or wrong locations in the labels, labels that the task cannot
            express, a misspelt task, or a task without its text or region.
    """
    text = ordered_labels(example, size, rng)
    check_no_control_tokens(text, "the text of the labels")
    check_locations(text, "the text of the labels")
    # A misspelt task, or one without its text, could be asked by nobody.
    check_task_of_data(example.prefix, declared=declared)
    check_request(example.prefix, free_prompt=True)
    return build_prompt(example.prefix), text


def _texts(source: Source, index: int) -> Sequence[str]:
    """Prompt and labels of an example and of each of the same image."""
    texts: list[str] = []
    # The quarantine says what is wrong with a row.
    try:
        example = source[index]
        for one in (example, *example.same_image):
            labels = one.labels
            if not isinstance(labels, str):
                labels = target_text(one.task, labels, one.size or _ANY_SIZE)
            texts += (build_prompt(one.prefix), labels)
    except Exception:
        return []
    return texts
