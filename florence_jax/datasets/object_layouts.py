"""Data sets of images with objects, one reader for each layout beside COCO's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from florence_jax.datasets.cvat import read_cvat
from florence_jax.datasets.label_studio import read_label_studio
from florence_jax.datasets.labelme import read_labelme
from florence_jax.datasets.object_set import ObjectSet
from florence_jax.datasets.voc import read_voc
from florence_jax.datasets.yolo import read_yolo

# Each takes the file or folder, the split and the folder of the images.
OBJECT_LAYOUTS: dict[str, Callable[[Path, str, Path | None], ObjectSet]] = {
    "voc": read_voc,
    "yolo": read_yolo,
    "labelme": read_labelme,
    "label_studio": read_label_studio,
    "cvat": read_cvat,
}


def read_object_set(
    layout: str, path: Path, split: str = "", image_root: Path | None = None
) -> ObjectSet:
    """Read a data set of images with objects.

    Args:
        layout: one of `OBJECT_LAYOUTS`.
        path: the file or folder, as `recognise` finds it.
        split: what selects a split, where several are in one place; "" for all.
        image_root: the folder that image names start from; by default that of the layout.

    Raises:
        DatasetError: it is not of this layout.
    """
    return OBJECT_LAYOUTS[layout](path, split, image_root)
