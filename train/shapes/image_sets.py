"""The world as data sets of image networks: folders of classes, and images with masks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np

from florence_jax.runtime.atomic_file import atomic_open
from florence_jax.runtime.directory_lock import directory_lock
from florence_jax.segmentation.masks import write_mask
from train.shapes.lexicon import COLOURS, KINDS, WORD
from train.shapes.render import FINE, draw, owners
from train.shapes.scene import Scene, Shape
from train.shapes.world import DIRECTORIES, ShapesWorld

Property = Literal["colour", "kind"]

_NAMES: dict[Property, tuple[str, ...]] = {"colour": tuple(COLOURS), "kind": KINDS}


def mask_classes(by: Property = "colour") -> tuple[str, ...]:
    """Names of the classes of a mask's pixels."""
    return ("background", *_NAMES[by], WORD)


def write_class_folders(
    world: ShapesWorld, directory: str | os.PathLike, count: int, *, by: Property = "colour"
) -> Path:
    """Write scenes into DIRECTORY/SPLIT/CLASS/, by the colour or kind of their largest shape.

    Args:
        world: a `SceneConfig` with `shapes=(1, 1)` leaves no doubt which shape that is.
        directory: has a folder for each split.
        count: scenes.
        by: what their class is.

    Returns:
        The split's directory.
    """
    folder = Path(directory) / DIRECTORIES[world.split]
    for name in _NAMES[by]:
        (folder / name).mkdir(parents=True, exist_ok=True)
    with directory_lock(folder):
        for index in range(count):
            scene = world.scene(index)
            with atomic_open(folder / class_of(scene, by) / f"{index:06}.png", "wb") as file:
                draw(scene).save(file, format="png")
    return folder


def write_mask_folders(
    world: ShapesWorld, directory: str | os.PathLike, count: int, *, by: Property = "colour"
) -> Path:
    """Write scenes as DIRECTORY/SPLIT/images/ and their masks of `mask_classes` as masks/.

    Args:
        world: the scenes.
        directory: has a folder for each split.
        count: scenes.
        by: what the class of a shape's pixels is.

    Returns:
        The split's directory.
    """
    folder = Path(directory) / DIRECTORIES[world.split]
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    with directory_lock(folder):
        for index in range(count):
            scene = world.scene(index)
            with atomic_open(folder / "images" / f"{index:06}.png", "wb") as file:
                draw(scene).save(file, format="png")
            write_mask(folder / "masks" / f"{index:06}.png", mask_of(scene, by))
    return folder


def class_of(scene: Scene, by: Property = "colour") -> str:
    """The colour or kind of a scene's largest shape."""
    return getattr(max(scene.shapes, key=lambda shape: shape.radius), by)


def mask_of(scene: Scene, by: Property = "colour") -> np.ndarray:
    """uint8[side, side]: the number in `mask_classes` of what is seen at each pixel's corner."""
    names = [
        getattr(source, by) if isinstance(source, Shape) else WORD
        for source in (*scene.shapes, *scene.words)
    ]
    numbers = np.array([0, *map(mask_classes(by).index, names)], np.uint8)
    return numbers[owners(scene)[::FINE, ::FINE]]
