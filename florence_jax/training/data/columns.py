"""Rows of tables whose columns are called as their authors like: which column holds what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from florence_jax.datasets.coco_entries import Corners, box_within, is_number
from florence_jax.processing import TASKS, task_of
from florence_jax.processing.image.load import image_size
from florence_jax.training.checked import Checked, did_you_mean
from florence_jax.training.data.example import DataError, Example

BoxFormat = Literal["xywh", "xyxy", "cxcywh", "xywh_shares", "xyxy_shares", "cxcywh_shares"]


@dataclass(frozen=True, kw_only=True)
class Columns(Checked):
    """Which columns of a table hold what; a dot leads into a column's own fields.

    Attributes:
        image: the image: encoded bytes, an object with `bytes`, or what the reader opens.
        prefix: the prompt; not read where `task` is set.
        suffix: the answer; not read where `boxes` is set.
        task: the task of all rows, in place of a column of prompts, such as "<CAPTION>".
        boxes: boxes of objects, such as "objects.bbox", in place of a column of answers. The task
            is then <OD> by default.
        labels: names or numbers of the objects' classes, such as "objects.category".
        box_format: what the four numbers of a box are: xywh (COCO's), xyxy or cxcywh in pixels, or
            with _shares in shares of the image's sides.
        names: names of classes by their numbers, where the data set does not say them.
    """

    image: str = "image"
    prefix: str = "prefix"
    suffix: str = "suffix"
    task: str = ""
    boxes: str = ""
    labels: str = ""
    box_format: BoxFormat = "xywh"
    names: tuple[str, ...] = ()

    def problems(self) -> Iterator[str]:
        if bool(self.boxes) != bool(self.labels):
            yield "columns.boxes and columns.labels go together: set both, or none"
        if self.boxes and self.asked not in ("<OD>", "<DENSE_REGION_CAPTION>"):
            yield (
                f"columns.boxes with labels answer <OD> or <DENSE_REGION_CAPTION>, not "
                f"columns.task={self.task}"
            )
        if self.task and self.task not in TASKS and not self.task.startswith("<"):
            yield f"columns.task must be a task such as <CAPTION>, got {self.task!r}"

    @property
    def asked(self) -> str:
        """The task of all rows; "" where a column says it."""
        return self.task or ("<OD>" if self.boxes else "")

    @property
    def needed(self) -> list[str]:
        """The columns that a row must have."""
        answers = [self.boxes, self.labels] if self.boxes else [self.suffix]
        return [self.image, *([] if self.asked else [self.prefix]), *answers]

    def check(self, where: str, has: Sequence[str]) -> None:
        """Compare the columns with those that a data set has, nested ones as "objects.bbox".

        Raises:
            DataError: one is missing; names those that there are.
        """
        known = {*has, *(name.partition(".")[0] for name in has)}
        missing = [name for name in self.needed if name not in known]
        if missing:
            near = did_you_mean(missing[0], has)
            raise DataError(
                f"{where} lacks the columns {', '.join(missing)}{near}; it has "
                f"{', '.join(has)[:300]}: say which holds what by columns, such as "
                '{"image": "image", "task": "<CAPTION>", "suffix": "text"}'
            )


def row_of_columns(
    row: Mapping[str, Any], columns: Columns, where: str, image: Any, names: Sequence[str] = ()
) -> Example:
    """A row as an example.

    Args:
        image: the row's image, as `Example` takes it.
        names: names of classes by their numbers, as the data set says them.

    Raises:
        DataError: a column is missing or holds something else, or a box has no place in the image.
    """
    prompt = columns.asked or _text(row, columns.prefix, where)
    task = task_of(prompt) if prompt.startswith(task_of(prompt)) else ""
    labels: str | dict[str, Any]
    if columns.boxes:
        labels = _objects(row, columns, where, image, columns.names or names)
    else:
        labels = _text(row, columns.suffix, where)
    return Example(id=where, image=image, task=task, prompt=prompt[len(task) :], labels=labels)


def value_at(row: Mapping[str, Any], name: str, where: str) -> Any:
    """The value of a column; of a list of objects, the list of their values.

    Raises:
        DataError: there is none of that name.
    """
    found: Any = row
    if name in row:
        return row[name]
    for part in name.split("."):
        if isinstance(found, Mapping) and part in found:
            found = found[part]
        elif isinstance(found, list) and all(isinstance(o, Mapping) and part in o for o in found):
            found = [one[part] for one in found]
        else:
            has = ", ".join(map(str, found)) if isinstance(found, Mapping) else repr(found)
            raise DataError(
                f"{where} has no column {name}, but {has:.200}: say which holds what by columns, "
                'such as {"task": "<CAPTION>", "suffix": "txt"}'
            )
    return found


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = value_at(row, name, where)
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        value = value[0]  # several captions of one image
    if not isinstance(value, str):
        raise DataError(f"{where}: the column {name} must hold text, got {value!r:.80}")
    return value


def _objects(
    row: Mapping[str, Any], columns: Columns, where: str, image: Any, names: Sequence[str]
) -> dict[str, Any]:
    boxes = value_at(row, columns.boxes, where)
    labels = value_at(row, columns.labels, where)
    for name, value in ((columns.boxes, boxes), (columns.labels, labels)):
        if not isinstance(value, list):
            raise DataError(f"{where}: the column {name} must hold a list, got {value!r:.80}")
    if len(boxes) != len(labels):
        raise DataError(
            f"{where} has {len(boxes)} {columns.boxes} and {len(labels)} {columns.labels}: "
            "expected one label for each box"
        )
    size = _size(image) if boxes else None
    if size is None and boxes and columns.box_format.endswith("shares"):
        raise DataError(f"{where}: its boxes are shares of the sides of an image without a size")
    placed = [_corners(box, columns.box_format, size, where) for box in boxes]
    return {
        "bboxes": [list(box) for box in placed],
        "labels": [_label(one, names, columns, where) for one in labels],
    }


def _label(value: Any, names: Sequence[str], columns: Columns, where: str) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{where}: a label in {columns.labels} is {value!r:.40}, expected a name")
    if not 0 <= value < len(names):
        raise DataError(
            f"{where}: a label in {columns.labels} is the number {value}, and there are names of "
            f"{len(names)} classes: set columns.names"
        )
    return names[value]


def _corners(box: Any, form: BoxFormat, size: tuple[float, float] | None, where: str) -> Corners:
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        raise DataError(f"{where}: a box is {box!r:.80}, expected four finite numbers ({form})")
    a, b, c, d = map(float, box)
    kind, _, shares = form.partition("_")
    if kind == "xywh":
        corners = (a, b, a + c, b + d)
    elif kind == "cxcywh":
        corners = (a - c / 2, b - d / 2, a + c / 2, b + d / 2)
    else:
        corners = (a, b, c, d)
    if shares and size is not None:
        width, height = size
        corners = (corners[0] * width, corners[1] * height, corners[2] * width, corners[3] * height)
    placed, fault = box_within(corners, size)
    if fault:
        raise DataError(
            f"{where}: boxes such as {box!r:.80}, read as {form}, {fault}: mend them, or set "
            "columns.box_format"
        )
    return placed


def _size(image: Any) -> tuple[float, float] | None:
    """(width, height) of an image in memory; None of one that is fetched later."""
    if isinstance(image, bytes):
        return image_size(image)  # pyright: ignore[reportArgumentType]
    return getattr(image, "size", None)
