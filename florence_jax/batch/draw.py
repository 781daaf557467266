"""Draw answers on their images, in worker processes."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from florence_jax.batch.image_reader import ImageSource, open_image
from florence_jax.batch.job import Item, Row
from florence_jax.batch.reader_pool import WorkerPool
from florence_jax.results.draw import save_drawn
from florence_jax.runtime.atomic_file import check_writable, file_name, remove_leftovers
from florence_jax.runtime.error_text import is_of_one_input, row_error_text


class DrawAnswers:
    """Draws the answers of a block into a folder, before the block's file is written.

    A file is `<name>-<digest of the id>.<task>.png`: a function of the row alone, so that a block
    that is done again draws the same files. An answer that cannot be drawn gets a `drawing_error`.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
        remove_leftovers(folder)
        self._folder = folder

    def __call__(self, items: Sequence[Item], rows: Sequence[Row], pool: WorkerPool) -> None:
        drawings = [
            (
                name,
                answer,
                pool.submit(draw_answer, item.image, answer["result"], str(self._folder / name)),
            )
            for item, row in zip(items, rows, strict=True)
            for name, answer in _named(row)
        ]
        for name, answer, drawing in drawings:
            try:
                drawing.result()
            except Exception as error:
                if not is_of_one_input(error) or isinstance(error, EOFError):
                    raise
                answer["drawing_error"] = row_error_text(error)
                print(
                    f"{self._folder / name} is not drawn: {answer['drawing_error']}",
                    file=sys.stderr,
                )


def draw_answer(source: ImageSource, result: dict[str, Any], path: str) -> None:
    """Write the image with one result drawn on it to `path`, atomically."""
    save_drawn(open_image(source), result, path)


def _named(row: Row) -> list[tuple[str, dict[str, Any]]]:
    """A file name for each answer of a row that has a result."""
    digest = hashlib.blake2b(row["id"].encode("utf-8", "surrogatepass"), digest_size=4)
    stem = re.sub(r"[^\w.-]+", "_", Path(row["id"]).stem)[:60]
    named: dict[str, dict[str, Any]] = {}
    for answer in row.get("answers", ()):
        if "result" not in answer:
            continue
        task = re.sub(r"\W+", "_", answer["prompt"]).strip("_").lower()[:60] or "text"
        name, number = task, 1
        file = file_name(stem, f"-{digest.hexdigest()}.{name}.png")
        while file in named:
            number += 1
            file = file_name(stem, f"-{digest.hexdigest()}.{task}.{number}.png")
        named[file] = answer
    return list(named.items())
