"""Scenes written to a directory: PNG pictures and the rows `image, prefix, suffix`."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from florence_jax.processing import TASKS
from train.shapes.config import Split
from train.shapes.drawing import draw
from train.shapes.questions import questions
from train.shapes.world import ShapesWorld

# The directories of the Roboflow convention.
DIRECTORIES: dict[Split, str] = {"train": "train", "valid": "valid", "held-out": "test"}
ROWS = "annotations.jsonl"


def write_dataset(
    world: ShapesWorld,
    directory: str | os.PathLike,
    count: int,
    *,
    start: int = 0,
    tasks: Sequence[str] = tuple(TASKS),
) -> Path:
    """Write scenes `start` to `start + count` of the world's split.

    Returns:
        The split's directory: `annotations.jsonl`, the pictures it names, and `world.json`, the
        settings they were made with. Written over where it is there; the same bytes every time.

    Raises:
        ValueError: `count` below 1 or `start` below 0.
    """
    if count < 1 or start < 0:
        raise ValueError(f"count is {count} and start {start}, expected at least 1 and 0")
    folder = Path(directory) / DIRECTORIES[world.split]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ROWS, "w", encoding="utf-8") as rows:
        for index in range(start, start + count):
            scene = world.scene(index)
            name = f"{index:06}.png"
            draw(scene).save(folder / name)
            for question in questions(scene, tasks):
                row = {"image": name, "prefix": question.prefix, "suffix": question.suffix}
                rows.write(json.dumps(row) + "\n")
    settings = {**dataclasses.asdict(world), "start": start, "count": count, "tasks": list(tasks)}
    (folder / "world.json").write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
    return folder
