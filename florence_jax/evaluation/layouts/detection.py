"""COCO's detection files."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from florence_jax.batch.images import FileBelow
from florence_jax.batch.job import Item
from florence_jax.evaluation.layouts.files import (
    Dataset,
    LayoutError,
    box_of,
    entries,
    find_file,
    find_folder,
    read_json,
    text_of,
    value_of,
)


def coco_detection(root: Path, split: str) -> Dataset:
    """`annotations/instances_val2017.json` and the folder val2017."""
    path = find_file(
        root,
        (f"annotations/instances_{split}.json", f"instances_{split}.json"),
        "It is in annotations_trainval2017.zip of cocodataset.org, the pictures are val2017.zip",
    )
    folder = find_folder(root, (split, f"images/{split}"), f"Unpack {split}.zip here")
    return detection_file(path, folder)


def detection_file(path: Path, folder: Path) -> Dataset:
    """Any file in the layout of COCO's instances, pictures in `folder`.

    The truth of an item is its boxes and their names; crowds are left out of what is drawn, not of
    what is scored.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not content.keys() >= {"images", "annotations"}:
        raise LayoutError(f"{path} lacks COCO's `images` and `annotations`")
    names = {
        value_of(category, "id", path): text_of(category, "name", path)
        for category in content.get("categories", [])
    }
    if not names:
        raise LayoutError(f"{path} has no `categories`, and boxes need names")
    boxes: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd"):
            boxes[value_of(annotation, "image_id", path)].append(annotation)
    items = []
    for image in entries(content, "images", path):
        found = boxes[value_of(image, "id", path)]
        truth = {
            "bboxes": [box_of(annotation, path) for annotation in found],
            "labels": [names[annotation["category_id"]] for annotation in found],
        }
        items.append(
            Item(
                id=str(image["id"]),
                image=FileBelow(str(folder), text_of(image, "file_name", path)),
                extra={"truth": truth, "image_id": image["id"]},
            )
        )
    return Dataset(items=items, files=[path], truth={"coco": content})
