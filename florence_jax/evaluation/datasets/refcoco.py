"""RefCOCO, RefCOCO+ and RefCOCOg: referring expressions for one object each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from florence_jax.batch.image_reader import FileBelow
from florence_jax.batch.job import Item
from florence_jax.evaluation.datasets.dataset import (
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
from florence_jax.evaluation.datasets.restricted_pickle import read_plain_pickle

_WHERE = (
    "refcoco.zip, refcoco+.zip and refcocog.zip are on the page of the repository lichengunc/refer;"
    " the images are COCO's train2014.zip of cocodataset.org"
)
# The authors of the split that every table uses.
_SPLIT_BY = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}


def expressions(name: str, root: Path, split: str, *, with_masks: bool = False) -> Dataset:
    """`refs(unc).p` or `refs(umd).p`, and `instances.json`, in root/NAME or in root.

    One item per expression. The truth is the object's box and, with `with_masks`, its segmentation.
    """
    refs_name = f"refs({_SPLIT_BY[name]}).p"
    refs_path = find_file(root, (f"{name}/{refs_name}", refs_name), _WHERE)
    instances = find_file(refs_path.parent, ("instances.json",), _WHERE)
    folder = find_folder(
        root, ("train2014", "images/train2014", "images/mscoco/images/train2014", "images"), _WHERE
    )
    refs = entries(read_plain_pickle(refs_path), "refs", refs_path)
    content = read_json(instances)
    images = {image["id"]: image for image in entries(content, "images", instances)}
    objects = {thing["id"]: thing for thing in entries(content, "annotations", instances)}
    chosen = [ref for ref in refs if value_of(ref, "split", refs_path) == split]
    if not chosen:
        known = ", ".join(sorted({ref["split"] for ref in refs}))
        raise LayoutError(f"{refs_path} has no split {split!r}, it has {known}")
    # Expressions about one image follow each other, so that it is read and encoded once.
    chosen.sort(key=lambda ref: value_of(ref, "image_id", refs_path))
    items = []
    for ref in chosen:
        image = _known(images, value_of(ref, "image_id", refs_path), "image", instances)
        annotation = _known(objects, value_of(ref, "ann_id", refs_path), "annotation", instances)
        truth: dict[str, Any] = {"box": box_of(annotation, instances)}
        if with_masks:
            truth["segmentation"] = value_of(annotation, "segmentation", instances)
            truth["size"] = [image["width"], image["height"]]
        for identity, expression in _expressions(ref, refs_path):
            items.append(
                Item(
                    id=identity,
                    image=FileBelow(str(folder), text_of(image, "file_name", instances)),
                    extra={"input": expression, "truth": truth},
                )
            )
    return Dataset(items=items, files=[refs_path, instances])


def _expressions(ref: Mapping[str, Any], path: Path) -> Iterator[tuple[str, str]]:
    for sentence in entries(value_of(ref, "sentences", path), "sentences", path):
        yield (
            f"{ref['ref_id']}#{value_of(sentence, 'sent_id', path)}",
            text_of(sentence, "sent", path),
        )


def _known(table: Mapping[Any, Any], number: Any, kind: str, path: Path) -> Any:
    if number not in table:
        raise LayoutError(f"{path} lacks the {kind} {number} that the expressions name")
    return table[number]
