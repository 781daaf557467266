"""Flickr30k Entities: phrases of captions, and their boxes."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from florence_jax.batch.image_reader import FileBelow
from florence_jax.batch.job import Item
from florence_jax.datasets.text_rows import DatasetError
from florence_jax.datasets.xml_file import read_xml
from florence_jax.evaluation.datasets.dataset import (
    Dataset,
    LayoutError,
    find_file,
    find_folder,
    numbered_lines,
    read_text,
)

_WHERE = (
    "annotations.zip and the lists of splits are in the repository BryanPlummer/flickr30k_entities,"
    " the images on Flickr30k's own page"
)
_SIDES = ("xmin", "ymin", "xmax", "ymax")
# [/EN#283585/people A young child] -> id, types, phrase.
_PHRASE = re.compile(r"\[/EN#(\d+)((?:/\w+)+) ([^\]]+)\]")


def flickr30k_entities(root: Path, split: str) -> Dataset:
    """`Annotations/*.xml`, `Sentences/*.txt`, `test.txt`, and the images.

    One item per sentence. Its truth is the phrases that have boxes. As in MDETR's evaluation,
    phrases about the whole scene or about what cannot be seen are left out, and so are sentences
    that have no phrase left.
    """
    names = find_file(root, (f"{split}.txt",), _WHERE)
    boxes_of = find_folder(root, ("Annotations",), _WHERE)
    sentences_of = find_folder(root, ("Sentences",), _WHERE)
    folder = find_folder(root, ("flickr30k-images", "flickr30k_images", "images", "Images"), _WHERE)
    items = []
    for name in read_text(names).split():
        boxes = _boxes(find_file(boxes_of, (f"{name}.xml",), _WHERE))
        lines = numbered_lines(find_file(sentences_of, (f"{name}.txt",), _WHERE))
        for number, (_, line) in enumerate(lines):
            phrases = [
                {"phrase": phrase.strip(), "boxes": boxes[entity]}
                for entity, _, phrase in _PHRASE.findall(line)
                if entity in boxes
            ]
            if phrases:
                sentence = " ".join(_PHRASE.sub(r"\3", line).split())
                items.append(
                    Item(
                        id=f"{name}#{number}",
                        image=FileBelow(str(folder), f"{name}.jpg"),
                        extra={"input": sentence, "truth": phrases},
                    )
                )
    if not items:
        raise LayoutError(f"{names} names no image with a phrase that has a box")
    return Dataset(items=items, files=[names])


def _boxes(path: Path) -> dict[str, list[list[int]]]:
    """The boxes of every entity, corners in pixels, counted from 0 as the authors' reader does."""
    try:
        root = read_xml(path)
    except DatasetError as error:
        raise LayoutError(str(error)) from None
    found: dict[str, list[list[int]]] = defaultdict(list)
    for thing in root.iter("object"):
        box = thing.find("bndbox")
        if box is None:
            continue
        try:
            corners = [int(box.findtext(side) or "") - 1 for side in _SIDES]
        except ValueError:
            raise LayoutError(f"{path} has a box without four whole numbers") from None
        for name in thing.findall("name"):
            found[str(name.text)].append(corners)
    return dict(found)
