"""Captions: COCO in Karpathy's split, NoCaps, TextCaps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from florence_jax.batch.image_reader import FileBelow
from florence_jax.batch.job import Item
from florence_jax.evaluation.datasets.dataset import (
    Dataset,
    LayoutError,
    check_text,
    entries,
    find_file,
    find_folder,
    read_json,
    text_of,
    value_of,
)


def coco_karpathy(root: Path, split: str) -> Dataset:
    """`dataset_coco.json` (Karpathy and Fei-Fei) and COCO's folders val2014 and train2014."""
    path = find_file(
        root,
        ("dataset_coco.json", "annotations/dataset_coco.json", "karpathy/dataset_coco.json"),
        "It is in caption_datasets.zip of Karpathy and Fei-Fei's page; the images are COCO's "
        "val2014.zip and train2014.zip of cocodataset.org",
    )
    items = []
    for image in entries(read_json(path), "images", path):
        if image.get("split") != split:
            continue
        folder = image.get("filepath", "val2014")
        name = f"{folder}/{text_of(image, 'filename', path)}"
        sentences = entries(image.get("sentences"), "sentences", path)
        number = str(image.get("cocoid", image.get("imgid", name)))
        items.append(_item(number, root, name, [text_of(s, "raw", path) for s in sentences]))
    return _dataset(items, path, split)


def nocaps(root: Path, split: str) -> Dataset:
    """`nocaps_val_4500_captions.json` and its images in images/ or val/."""
    path = find_file(
        root,
        (f"nocaps_{split}_4500_captions.json", f"annotations/nocaps_{split}_4500_captions.json"),
        "Both the file and the list of its Open Images images are on nocaps.org",
    )
    folder = find_folder(root, ("images", split, "validation", "nocaps"), "Download the images")
    content = read_json(path)
    if not isinstance(content, dict):
        raise LayoutError(f"{path} is no object of `images` and `annotations`")
    references: dict[Any, list[str]] = defaultdict(list)
    for annotation in entries(content.get("annotations"), "annotations", path):
        number = value_of(annotation, "image_id", path)
        references[number].append(text_of(annotation, "caption", path))
    items = []
    for image in entries(content.get("images"), "images", path):
        name, number = text_of(image, "file_name", path), value_of(image, "id", path)
        extra = {"domain": image["domain"]} if "domain" in image else {}
        items.append(_item(str(number), folder, name, references[number], **extra))
    return _dataset(items, path, split)


def textcaps(root: Path, split: str) -> Dataset:
    """`TextCaps_0.1_val.json` and TextVQA's images in train_images/."""
    path = find_file(
        root,
        (f"TextCaps_0.1_{split}.json", f"annotations/TextCaps_0.1_{split}.json"),
        "The file is on textvqa.org/textcaps, the images are train_val_images.zip there",
    )
    folder = find_folder(root, ("train_images", "images", "train"), "Unpack train_val_images.zip")
    references: dict[str, list[str]] = {}
    for entry in entries(read_json(path), "data", path):
        # One entry per caption; each has all of its image's.
        number = value_of(entry, "image_id", path)
        references.setdefault(number, _texts(value_of(entry, "reference_strs", path), path))
    items = [_item(name, folder, f"{name}.jpg", texts) for name, texts in references.items()]
    return _dataset(items, path, split)


def _texts(values: Any, path: Path) -> list[str]:
    if not isinstance(values, list):
        raise LayoutError(f"{path}: `reference_strs` is {values!r}, expected a list of texts")
    return [check_text(value, "reference_strs", path) for value in values]


def _item(name: str, root: Path, file: str, truths: Iterable[str], **extra: Any) -> Item:
    return Item(
        id=name,
        image=FileBelow(str(root), file),
        extra={"truth": list(truths), **extra},
    )


def _dataset(items: list[Item], path: Path, split: str) -> Dataset:
    if not items:
        raise LayoutError(f"{path} has no image of the split {split!r}")
    for item in items:
        if not item.extra["truth"]:
            raise LayoutError(f"{path}: image {item.id} has no caption to compare with")
    return Dataset(items=items, files=[path])
