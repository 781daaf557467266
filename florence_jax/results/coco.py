"""One COCO file of all images: written when the last row is known, since its ids run through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from florence_jax.results.instances import result_to_json, to_coco_dataset
from florence_jax.results.rows import Row, picture_name, shapes, size_of, values
from florence_jax.runtime.jsonl import json_text


class CocoFile:
    """Collects rows, and hands the dataset to `write` when it is saved.

    Boxes have an empty `segmentation`; every annotation has `bbox`, `area`, `iscrowd` and, where
    the model gave one, `score`. Images that could not be read are left out.
    """

    def __init__(self, write: Callable[[str], Any], file_name: Callable[[str], str] = str) -> None:
        """
        Args:
            write: takes the JSON text.
            file_name: the name of a picture, as the file shall have it.
        """
        self._write, self._file_name = write, file_name
        self._results: list[Mapping[str, Any]] = []
        self._names: list[str] = []
        self._sizes: list[tuple[int, int]] = []

    def write(self, row: Row) -> None:
        shapes(row, "coco")
        # Two prompts of one task, such as two classes, are two answers all the same.
        self._results.append({str(number): value for number, value in enumerate(values(row))})
        self._names.append(self._file_name(picture_name(row)))
        self._sizes.append(size_of(row))

    def save(self) -> None:
        """Write the dataset of the rows so far."""
        dataset = to_coco_dataset(self._results, self._names, self._sizes)
        self._write(f"{json_text(result_to_json(dataset))}\n")
