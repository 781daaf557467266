"""Scenes written to a directory: PNG pictures and the rows `image, prefix, suffix`."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from florence_jax.processing import TASKS
from florence_jax.runtime.atomic_file import atomic_open, atomic_write
from florence_jax.runtime.directory_lock import directory_lock
from train.shapes.config import Split
from train.shapes.render import draw
from train.shapes.tasks import questions
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
        DirectoryInUseError: another process writes the split.
    """
    if count < 1 or start < 0:
        raise ValueError(f"count is {count} and start {start}, expected at least 1 and 0")
    folder = Path(directory) / DIRECTORIES[world.split]
    folder.mkdir(parents=True, exist_ok=True)
    with directory_lock(folder), atomic_open(folder / ROWS) as rows:
        for index in range(start, start + count):
            scene = world.scene(index)
            name = f"{index:06}.png"
            with atomic_open(folder / name, "wb", durable=False) as file:
                draw(scene).save(file, format="png")
            for question in questions(scene, tasks):
                row = {"image": name, "prefix": question.prefix, "suffix": question.suffix}
                rows.write(json.dumps(row) + "\n")
        settings = {**dataclasses.asdict(world), "start": start, "count": count}
        settings["tasks"] = list(tasks)
        atomic_write(folder / "world.json", json.dumps(settings, indent=1) + "\n")
    return folder
