"""Rows of data as items: their columns, JSON Lines, and files that change while they are read."""

from __future__ import annotations

import base64
import bisect
import codecs
import hashlib
import math
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence_jax.batch.image_reader import FileBelow, ImageSource
from florence_jax.batch.job import Item
from florence_jax.inference.image_files import Say
from florence_jax.inference.requests import Query
from florence_jax.processing import TASKS, task_of
from florence_jax.runtime.text_file import TextFileError, decode, parse_json

IMAGE_COLUMNS = ("image", "image_base64", "file_name")
_QUERY = ("task", "text", "region", "labels")
# What people call the column `task` or `queries`.
_MEANT_TASK = frozenset({"task", "tasks", "prompt", "prompts", "query", "prefix"})
# Columns of the output that are the runner's, and those of a job that answers queries.
_RESERVED = frozenset({"width", "height", "error", "image_note"})
ANSWER_COLUMNS = frozenset({"answers"})


@dataclass(frozen=True, kw_only=True)
class RowReader:
    """Makes items of the rows of one source.

    Attributes:
        queries: asked about rows that bring no task of their own; None where nothing is asked.
        root: the directory below which rows name images.
        columns: of the rows that the job makes.
    """

    queries: tuple[Query, ...] | None = ()
    root: str
    columns: frozenset[str] = ANSWER_COLUMNS

    def item(self, place: str, row: Any) -> Item:
        """The item of one row; a row that makes no sense gives an item with an error.

        A row has `image` (a file below the root, encoded bytes, or the struct of both that Hugging
        Face writes), `image_base64`, or Hugging Face's `file_name`; `id`, by default `place`; a
        `task` with its `text`, `region` and `labels`, or a list of such objects as `queries`. Other
        columns go into the output, and so do `text`, `region` and `labels` without a `task`.

        Args:
            place: where the row is, unique among all rows.
        """
        if not isinstance(row, Mapping):
            return Item(id=place, error=f"{place} is no row: expected an object, got {row!r:.100}")
        given = row.get("id")
        name = place if given is None else str(given)
        try:
            image, queries = _image(row, self.root), ()
            if self.queries is not None:
                queries = _queries(row) or self.queries
                if not queries:
                    raise ValueError(
                        "the row has no `task`, and none was given for all rows (--task)"
                    )
            extra = _extra(row, _RESERVED | self.columns)
            return Item(id=name, image=image, queries=queries, extra=extra)
        except ValueError as error:
            return Item(id=name, error=f"{place}: {error}")


def row_id(place: str, row: Any) -> str:
    """The id that `RowReader.item` gives the row."""
    given = row.get("id") if isinstance(row, Mapping) else None
    return place if given is None else str(given)


def _image(row: Mapping[str, Any], root: str) -> ImageSource:
    column = _image_column(row)
    if column is None:
        if set(IMAGE_COLUMNS) & set(row):
            raise ValueError("`image` must be a file name or bytes, got None")
        raise ValueError(
            "the row has no `image` (a file name or bytes), `image_base64` or `file_name`; its "
            f"columns are {', '.join(map(str, row)) or 'none'}"
        )
    image = row[column]
    if column == "image_base64":
        try:
            return base64.b64decode(image, validate=True)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`image_base64` is not base64: {error}") from None
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str) and image:
        return FileBelow(root, image)
    if isinstance(image, bytes) and column == "image":
        return image
    what = "a file name or bytes" if column == "image" else "a file name"
    raise ValueError(f"`{column}` must be {what}, got {image!r:.100}")


def _image_column(row: Mapping[str, Any]) -> str | None:
    """The column that holds the image; None if there is none."""
    return next((name for name in IMAGE_COLUMNS if row.get(name) is not None), None)


def _queries(row: Mapping[str, Any]) -> tuple[Query, ...]:
    several = row.get("queries")
    if several is None:
        if row.get("task") is not None:
            return (_query(row),)
        _check_no_other_task(row)
        return ()
    if row.get("task") is not None:
        raise ValueError("the row has `task` and `queries`: one of them says it")
    if not isinstance(several, Sequence) or isinstance(several, str) or not several:
        raise ValueError(f"`queries` must be a list of objects, got {several!r:.100}")
    return tuple(_query(one) for one in several)


def _check_no_other_task(row: Mapping[str, Any]) -> None:
    """Refuse a row with a task in a column that is not read: it would be asked another."""
    for name, value in row.items():
        texts = value if isinstance(value, list | tuple) else [value]
        if name.lower() in _MEANT_TASK and any(
            isinstance(text, str) and task_of(text) in TASKS for text in texts
        ):
            raise ValueError(
                f"the row's column {name!r} holds a task, {value!r:.100}, and is not read: name "
                "the column `task`, or `queries` for a list"
            )


def _query(fields: Any) -> Query:
    if isinstance(fields, str):
        return Query(prompt=fields)
    if not isinstance(fields, Mapping) or not isinstance(fields.get("task"), str):
        raise ValueError(f"a query must have a `task` that is text, got {fields!r:.100}")
    text, region, labels = (fields.get(name) for name in _QUERY[1:])
    if text is not None and not (isinstance(text, str) or _is_list(text, str)):
        raise ValueError(f"`text` must be text or a list of classes, got {text!r:.100}")
    if region is not None and not (
        isinstance(region, str) or (isinstance(region, list | tuple) and _is_box(region))
    ):
        raise ValueError(f"`region` must be four numbers x0, y0, x1, y1, got {region!r:.100}")
    if labels is not None and not _is_list(labels, str):
        raise ValueError(f"`labels` must be a list of texts, got {labels!r:.100}")
    return Query(prompt=fields["task"], text=text, region=region, labels=labels)


def _extra(row: Mapping[str, Any], reserved: frozenset[str]) -> dict[str, Any]:
    own = {"id", "image", "image_base64", "queries"}
    own |= set(_QUERY) if row.get("task") is not None else {"task"}
    own |= {"file_name"} if _image_column(row) == "file_name" else set()
    extra = {name: value for name, value in row.items() if name not in own}
    taken = sorted(reserved & set(extra))
    if taken:
        raise ValueError(f"the columns {taken} are the output's own: give them other names")
    return extra


def _is_box(region: Sequence[Any]) -> bool:
    """Whether the value is four finite numbers."""
    try:
        return len(region) == 4 and all(
            isinstance(number, int | float)
            and not isinstance(number, bool)
            and math.isfinite(float(number))
            for number in region
        )
    except OverflowError:
        return False


def _is_list(value: Any, kind: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, kind) for one in value)


class FileChangedError(RuntimeError, ValueError):
    """A file of rows changed after its rows were counted; the message names it and the remedy.

    It is a RuntimeError too, which ends the run: no single row is to blame.
    """


class ChangeGuard:
    """The size and modification time of a file, compared while its rows are read."""

    def __init__(self, path: Path) -> None:
        self._path, self._mark = path, _mark(path)

    def check(self) -> None:
        """Refuse the file if it has changed.

        Raises:
            FileChangedError: it was written to, replaced or removed.
        """
        try:
            mark = _mark(self._path)
        except FileNotFoundError:
            raise FileChangedError(
                f"{self._path} was removed while it was read: put it back"
            ) from None
        if mark != self._mark:
            raise FileChangedError(
                f"{self._path} changed while it was read (it had {self._mark[0]} bytes, now "
                f"{mark[0]}): leave files of rows alone until a run over them is done. Put the "
                "file back as it was, or begin another run"
            )


def _mark(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


class JsonLines:
    """The rows of a `.jsonl` file; only the offsets of its lines are in memory, 8 bytes each."""

    def __init__(self, path: Path, reader: RowReader, say: Say | None = None) -> None:
        self._path, self._reader = path, reader
        self._guard = ChangeGuard(path)
        self._offsets, self._digest = array("q"), hashlib.sha256()
        # For each blank line, the number of rows before it: a row's line number counts blank lines.
        self._blank = array("q")
        position = 0
        with path.open("rb") as lines:
            for line in lines:
                if position == 0 and line[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                    decode(line, str(path))  # raises
                if line.removeprefix(codecs.BOM_UTF8).strip():
                    self._offsets.append(position)
                else:
                    self._blank.append(len(self._offsets))
                self._digest.update(line)
                position += len(line)
        self._guard.check()
        if say is not None and not self._offsets:
            say(f"{path} has no row")

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"jsonl": self._path.name, "sha256": self._digest.hexdigest()}

    def __len__(self) -> int:
        return len(self._offsets)

    def ids(self) -> Iterator[str]:
        for number, line in self._lines(0, len(self)):
            yield row_id(self._place(number), self._parsed(number, line))

    def read(self, start: int, stop: int) -> Iterator[Item]:
        for number, line in self._lines(start, stop):
            place, row = self._place(number), self._parsed(number, line)
            if isinstance(row, TextFileError):
                yield Item(id=place, error=str(row))
            else:
                yield self._reader.item(place, row)

    def _lines(self, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        """(number, line) of the rows from `start` up to `stop`, blank lines left out."""
        if start >= stop:
            return
        self._guard.check()
        with self._path.open("rb") as file:
            for number in range(start, stop):
                file.seek(self._offsets[number])
                yield number, file.readline()
        self._guard.check()

    def _parsed(self, number: int, line: bytes) -> Any:
        """The row, or the error of a line that is none."""
        in_file = number + 1 + bisect.bisect_right(self._blank, number)
        try:
            return parse_json(line, f"{self._place(number)} (line {in_file})")
        except TextFileError as error:
            return error

    def _place(self, number: int) -> str:
        return f"{self._path}:{number}"
