"""Custom data: the rows that training reads, or images with objects in any layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from florence_jax.batch.image_reader import FileBelow
from florence_jax.batch.job import Item
from florence_jax.datasets.json_layouts import kind_of_json
from florence_jax.datasets.layouts import Found, recognise, split_of
from florence_jax.datasets.object_layouts import OBJECT_LAYOUTS, read_object_set
from florence_jax.datasets.text_rows import DatasetError, row_columns
from florence_jax.evaluation.datasets.dataset import (
    Dataset,
    LayoutError,
    numbered_lines,
    read_json,
)
from florence_jax.evaluation.datasets.detection import detection_file, detection_set
from florence_jax.processing import TASKS, parse, task_of
from florence_jax.processing.vocabulary import check_locations, check_no_control_tokens
from florence_jax.runtime.text_file import TextFileError, parse_json

# An example of a suffix, for each task that answers with locations.
_FORMS = {
    "<OD>": "car<loc_52><loc_334><loc_932><loc_774>",
    "<REGION_PROPOSAL>": "<loc_52><loc_334><loc_932><loc_774>",
    "<REFERRING_EXPRESSION_SEGMENTATION>": "<loc_52><loc_334><loc_932><loc_334><loc_932><loc_774>",
    "<REGION_TO_SEGMENTATION>": "<loc_52><loc_334><loc_932><loc_334><loc_932><loc_774>",
    "<OCR_WITH_REGION>": "STOP<loc_52><loc_33><loc_93><loc_33><loc_93><loc_77><loc_52><loc_77>",
}


def read_custom(path: Path, image_root: Path | None = None, split: str | None = None) -> Dataset:
    """Read a `.jsonl` of `image`, `prefix`, `suffix`, or images with objects.

    `suffix` is the true answer in Florence-2's own text ("car<loc_1>..."), or a list of texts that
    are equally right. Images are relative to `image_root`, by default the layout's own folder.

    Args:
        path: a file, or a folder in a layout that `florence_jax.datasets.layouts.recognise` knows.
        split: of a folder with several.

    Raises:
        LayoutError: the file is missing, has no such split, or a row lacks what it needs.
    """
    if not path.exists():
        raise LayoutError(
            f"{path} is no file: --data names a .jsonl of image, prefix, suffix, a .json in COCO's "
            "layout, or the folder of a data set"
        )
    # By its name, so that a file with a fault is told what it lacks.
    if path.is_file() and path.suffix.lower() == ".json" and _is_coco(path):
        return detection_file(path, image_root or path.parent)
    if path.is_file() and path.suffix.lower() not in _RECOGNISED:
        return _lines(path, image_root or path.parent)
    try:
        found = _split(recognise(path), split, path)
        root = image_root or found.image_root
        if found.kind == "jsonl":
            return _lines(found.path, root or found.path.parent)
        if found.kind == "coco":
            return detection_file(found.path, root or found.path.parent)
        if found.kind in OBJECT_LAYOUTS:
            return detection_set(read_object_set(found.kind, found.path, found.part, root))
    except DatasetError as error:
        raise LayoutError(str(error)) from None
    raise LayoutError(
        f"{path} holds a data set of the kind {found.kind}, which is not scored: write its rows as "
        "a .jsonl of image, prefix, suffix"
    )


_RECOGNISED = (".json", ".xml")


def _is_coco(path: Path) -> bool:
    """Whether a JSON file is COCO's, or nothing that another reader knows."""
    return kind_of_json(read_json(path)) in (None, "coco")


def _split(found: Sequence[Found], split: str | None, path: Path) -> Found:
    """The split that was asked for; without one, the only one."""
    if split is not None:
        return split_of(found, split, path)
    if len(found) > 1:
        listed = ", ".join(one.split for one in found)
        raise LayoutError(f"{path} has the splits {listed}: name one by --split")
    return found[0]


def _lines(path: Path, root: Path) -> Dataset:
    rows: list[tuple[int, Any, FileBelow, str, list[str]]] = []
    for number, line in numbered_lines(path):
        where = f"{path}, line {number}"
        try:
            row = parse_json(line, where)
            image, prefix, suffix = row_columns(row, where)
        except (TextFileError, DatasetError) as error:
            raise LayoutError(str(error)) from None
        # Several texts may be right.
        truths: list[Any] = suffix if isinstance(suffix, list) and suffix else [suffix]
        for name, texts in (("image", [image]), ("prefix", [prefix]), ("suffix", truths)):
            for text in texts:
                _check_text(text, name, where)
        rows.append((number, row.get("id"), FileBelow(str(root), image), prefix, truths))
    if not rows:
        raise LayoutError(f"{path} has no row: expected lines of image, prefix, suffix")
    ids = [identity for _, identity, *_ in rows]
    named = [str(one) for one in ids if type(one) in (str, int)]
    distinct = len(set(named)) == len(rows)
    notes = []
    if any(one is not None for one in ids) and not distinct:
        notes.append(f"{path}: its ids are not one for each row, rows are named by their lines")
    items = [
        Item(
            id=str(identity) if distinct else str(number),
            image=image,
            extra={"input": prefix, "truth": truths},
        )
        for number, identity, image, prefix, truths in rows
    ]
    notes += _unreadable(path, [(number, *texts) for number, _, _, *texts in rows])
    return Dataset(items=items, files=[path], notes=notes)


def _unreadable(path: Path, rows: list[Any]) -> list[str]:
    """Notes about truths in which their task finds nothing.

    Raises:
        LayoutError: no truth of a task that answers with locations has one, so that its score
            would compare with nothing.
    """
    located: dict[str, list[tuple[int, str, bool]]] = {}
    for number, prefix, truths in rows:
        task = task_of(prefix)
        if task in TASKS and TASKS[task].answer not in ("pure_text", "phrase_grounding"):
            found = parse(truths[0], task, (1000, 1000))[task]
            shapes = ("bboxes", "polygons", "quad_boxes")
            held = any(found.get(name) for name in shapes)
            located.setdefault(task, []).append((number, truths[0], held))
    notes = []
    for task, seen in located.items():
        if not any(held for *_, held in seen):
            raise LayoutError(
                f"{path}: no suffix of the {len(seen)} rows of {task} holds a place that it can "
                f"read, such as {seen[0][1]!r:.80} of line {seen[0][0]}: expected text as "
                f"{_FORMS.get(task, _FORMS['<OD>'])!r}"
            )
        unread = [(number, text) for number, text, held in seen if text.strip() and not held]
        if unread:
            notes.append(
                f"{path}: {len(unread)} suffixes of {task} hold text and no place, such as "
                f"{unread[0][1]!r:.80} of line {unread[0][0]}; they count as nothing to find"
            )
    return notes


def _check_text(text: Any, name: str, where: str) -> None:
    if not isinstance(text, str):
        raise LayoutError(f"{where}: `{name}` is {text!r:.80}, expected a text")
    if name != "image":
        try:
            check_no_control_tokens(text, f"`{name}`")
            check_locations(text, f"`{name}`")
        except ValueError as error:
            raise LayoutError(f"{where}: {error}") from None
