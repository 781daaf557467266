"""The order in which labels name the objects of an image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from florence_jax.processing import parse
from florence_jax.processing.targets import Order, target_text
from florence_jax.training.data.example import Example, ObjectOrder, Source

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
        object.__setattr__(self, "notes", self.source.notes)

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
        example: its coordinates are pixels of the picture.
        size: (width, height) of the picture.
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
