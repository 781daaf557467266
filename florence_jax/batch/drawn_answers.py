"""Answers drawn on their pictures, by worker processes."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from florence_jax.batch.images import ImageSource, open_picture
from florence_jax.batch.job import Item, Row
from florence_jax.batch.workers import WorkerPool
from florence_jax.inference.drawing import draw_result
from florence_jax.processing.errors import ImageError


class DrawnAnswers:
    """Draws a block's answers into a folder, before the block's file is there.

    A picture is `<name>-<digest of the id>.<task>.png`: a function of the row alone, so that a
    block that is done again draws the same files.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def __call__(self, items: Sequence[Item], rows: Sequence[Row], pool: WorkerPool) -> None:
        drawings = [
            (name, pool.submit(draw_answer, item.image, answer["result"], str(self._folder / name)))
            for item, row in zip(items, rows, strict=True)
            for name, answer in _named(row)
        ]
        for name, drawing in drawings:
            try:
                drawing.result()
            except ImageError as error:
                # It could be read a moment ago, and its row says what was seen then.
                print(f"{self._folder / name} is not drawn: {error}", file=sys.stderr)


def draw_answer(source: ImageSource, result: dict[str, Any], path: str) -> None:
    """Write the picture with one result drawn on it; it is at `path` as a whole or not at all."""
    drawn = draw_result(open_picture(source), result)
    aside = f"{path}.{secrets.token_hex(6)}.incomplete"
    drawn.save(aside, format="png")
    os.replace(aside, path)


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
        while f"{stem}-{digest.hexdigest()}.{name}.png" in named:
            number += 1
            name = f"{task}.{number}"
        named[f"{stem}-{digest.hexdigest()}.{name}.png"] = answer
    return list(named.items())
