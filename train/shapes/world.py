"""The world as a data source, whose examples are made when asked for, or written to a directory."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from florence_jax.processing import TASKS
from florence_jax.runtime.atomic_file import atomic_open, atomic_write
from florence_jax.runtime.directory_lock import directory_lock
from train.shapes.config import SPLITS, SceneConfig, Split
from train.shapes.render import draw
from train.shapes.scene import Scene
from train.shapes.scene_sampler import make_scene
from train.shapes.tasks import Question, questions

# The directories of the Roboflow convention.
DIRECTORIES: dict[Split, str] = {"train": "train", "valid": "valid", "held-out": "test"}
ROWS = "annotations.jsonl"


@dataclass(frozen=True, kw_only=True)
class Example:
    """A picture and what is asked of it: the row `image, prefix, suffix` of a data set."""

    image: Image.Image
    prefix: str
    suffix: str


@dataclass(frozen=True, kw_only=True)
class ShapesWorld:
    """Endless scenes of one split. Random access, no state: safe to share among processes."""

    config: SceneConfig = field(default_factory=SceneConfig)
    seed: int = 0
    split: Split = "train"

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split is {self.split!r}, expected one of {', '.join(SPLITS)}")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, expected 0 or more")

    def scene(self, index: int) -> Scene:
        """Scene `index`, 0 or more."""
        return make_scene(self.config, self.seed, self.split, index)

    def examples(self, index: int, tasks: Sequence[str] = tuple(TASKS)) -> list[Example]:
        """Scene `index` with one question for each of `tasks`; they share the picture."""
        scene = self.scene(index)
        image = draw(scene)
        return [
            Example(image=image, prefix=question.prefix, suffix=question.suffix)
            for question in questions(scene, tasks)
        ]

    def questions(self, index: int, tasks: Sequence[str] = tuple(TASKS)) -> list[Question]:
        """The questions of `examples`, with their exact answers and without the picture."""
        return questions(self.scene(index), tasks)


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
