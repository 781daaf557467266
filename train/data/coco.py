"""Annotations in COCO's layout: detection, captions, and referring expressions on its pictures."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from florence_jax.processing import box_to_text
from train.data.example import DataError, Example
from train.data.json_file import read_object
from train.data.place import Place, contained, place

CocoTask = Literal[
    "<OD>",
    "<REGION_PROPOSAL>",
    "<OPEN_VOCABULARY_DETECTION>",
    "<CAPTION>",
    "<REGION_TO_CATEGORY>",
    "<REFERRING_EXPRESSION_SEGMENTATION>",
    "<CAPTION_TO_PHRASE_GROUNDING>",
]


class Coco:
    """One COCO JSON file as examples of one task.

    - `<OD>`, `<REGION_PROPOSAL>`: one example a picture, all its boxes.
    - `<OPEN_VOCABULARY_DETECTION>`: one a picture and category that is in it.
    - `<REGION_TO_CATEGORY>`: one a box.
    - `<CAPTION>`: one a caption annotation.
    - `<REFERRING_EXPRESSION_SEGMENTATION>`, `<CAPTION_TO_PHRASE_GROUNDING>`: one an annotation with
      a `caption` (or, as the RefCOCO conversions have it, a picture with a `caption`), its polygon
      or its box.

    Boxes are pixels, or shares of the picture's sides where no number of the file exceeds 1 (as
    Azure exports them). Crowd regions (`iscrowd`) are left out, and boxes without area in the
    picture. Pictures without annotations are examples of an empty answer for the tasks by picture.

    Raises:
        DataError: the file is not COCO's layout, or has nothing for the task.
    """

    def __init__(self, path: str | Place, task: CocoTask, image_root: str | Place | None = None):
        self.path, self.task = place(path), task
        self.image_root = place(image_root) if image_root else self.path.parent
        content = read_object(self.path, all_of=("images", "annotations"))
        images = self._parts(content, "images", "id", "file_name")
        self._images = {image["id"]: image for image in images}
        categories = self._parts(content, "categories", "id", "name")
        self._categories = {category["id"]: category["name"] for category in categories}
        self._annotations: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
        for annotation in self._parts(content, "annotations", "image_id"):
            if annotation["image_id"] not in self._images:
                raise DataError(
                    f"{self.path}: an annotation is of image_id {annotation['image_id']!r}, which "
                    "is not among the images: add the image, or remove its annotations"
                )
            box = annotation.get("bbox")
            if box and not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
                raise DataError(
                    f"{self.path}: the bbox of an annotation of image_id "
                    f"{annotation['image_id']!r} is {box!r:.80}, expected [x, y, width, height]"
                )
            if not annotation.get("iscrowd"):
                self._annotations[annotation["image_id"]].append(annotation)
        boxes = [a["bbox"] for found in self._annotations.values() for a in found if a.get("bbox")]
        self._shares = bool(boxes) and max(map(max, boxes)) <= 1.0
        for image_id, found in self._annotations.items():
            if self._shares and found and _size(self._images[image_id]) is None:
                raise DataError(
                    f"{self.path}: its boxes are shares of the pictures' sides, and image "
                    f"{image_id!r} has no `width` and `height`: add them"
                )
        self._items = list(self._numbered())
        if not self._items:
            raise DataError(f"{self.path} has no annotations for {task}")

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Example:
        image_id, chosen = self._items[index]
        image = self._images[image_id]
        where = f"{self.path} {self.task}:{index}"
        prompt, answer = self._asked(image, chosen, where)
        return Example(
            id=where,
            image=contained(self.image_root, image["file_name"], where),
            task=self.task,
            prompt=prompt,
            answer=answer,
            size=_size(image),
        )

    def _parts(self, content: Mapping[str, Any], name: str, *keys: str) -> list[Mapping[str, Any]]:
        """One of the file's lists, each entry with these keys."""
        parts = content.get(name, [])
        if not isinstance(parts, list):
            raise DataError(f"{self.path}: `{name}` is {type(parts).__name__}, expected a list")
        for number, part in enumerate(parts):
            missing = [key for key in keys if not isinstance(part, Mapping) or key not in part]
            if missing:
                raise DataError(
                    f"{self.path}: {name}[{number}] has no `{missing[0]}`: {part!r:.80}"
                )
        return parts

    def _numbered(self) -> Any:
        """(image id, what of it is asked about) of every example."""
        for image_id in self._images:
            boxes = [
                annotation
                for annotation in self._annotations[image_id]
                if self._has_area(annotation, self._images[image_id])
            ]
            if self.task in ("<OD>", "<REGION_PROPOSAL>"):
                yield image_id, boxes
            elif self.task == "<OPEN_VOCABULARY_DETECTION>":
                if any("category_id" not in a for a in boxes):
                    raise DataError(
                        f"{self.path}: an annotation of image_id {image_id!r} has no `category_id`"
                    )
                for category in sorted({a["category_id"] for a in boxes}):
                    yield image_id, [a for a in boxes if a["category_id"] == category]
            elif self.task == "<REGION_TO_CATEGORY>":
                yield from ((image_id, [a]) for a in boxes)
            elif self.task == "<CAPTION>":
                found = (a for a in self._annotations[image_id] if a.get("caption"))
                yield from ((image_id, [a]) for a in found)
            else:
                about = self._images[image_id].get("caption")
                yield from ((image_id, [a]) for a in boxes if a.get("caption") or about)

    def _asked(
        self, image: Mapping[str, Any], chosen: list[Mapping[str, Any]], where: str
    ) -> tuple[str, str | dict[str, Any]]:
        """(what follows the task token, the answer)."""
        if self.task == "<CAPTION>":
            return "", chosen[0]["caption"].strip()
        boxes = [self._corners(annotation, image) for annotation in chosen]
        if self.task == "<REGION_PROPOSAL>":
            return "", {"bboxes": boxes}
        if self.task == "<OD>":
            return "", {"bboxes": boxes, "labels": [self._name(a, where) for a in chosen]}
        if self.task == "<OPEN_VOCABULARY_DETECTION>":
            names = [self._name(a, where) for a in chosen]
            return names[0], {"bboxes": boxes, "bboxes_labels": names}
        if self.task == "<REGION_TO_CATEGORY>":
            region = box_to_text(boxes[0], _size(image) or (0, 0))
            return region, self._name(chosen[0], where) + region
        phrase = (chosen[0].get("caption") or image["caption"]).strip()
        if self.task == "<CAPTION_TO_PHRASE_GROUNDING>":
            return phrase, {"bboxes": boxes, "labels": [phrase]}
        polygons = chosen[0].get("segmentation")
        if not isinstance(polygons, list) or not polygons:
            raise DataError(f"{where} has no polygons to learn <REFERRING_EXPRESSION_SEGMENTATION>")
        return phrase, {"polygons": [polygons], "labels": [""]}

    def _corners(self, annotation: Mapping[str, Any], image: Mapping[str, Any]) -> list[float]:
        """COCO's x, y, width, height as corners in pixels, cut at the picture's edges."""
        x, y, width, height = annotation["bbox"]
        corners = np.array([x, y, x + width, y + height], np.float64)
        size = _size(image)
        if size is not None:
            edges = np.array([*size, *size])
            corners = np.clip(corners * edges if self._shares else corners, 0, edges)
        return corners.tolist()

    def _has_area(self, annotation: Mapping[str, Any], image: Mapping[str, Any]) -> bool:
        # Without numpy: a file has a million boxes.
        x, y, width, height = annotation.get("bbox") or (0, 0, 0, 0)
        right, lower = (1, 1) if self._shares else _size(image) or (math.inf, math.inf)
        inside = x < right and y < lower and x + width > 0 and y + height > 0
        return width > 0 and height > 0 and inside

    def _name(self, annotation: Mapping[str, Any], where: str) -> str:
        category = annotation.get("category_id")
        if category not in self._categories:
            raise DataError(f"{where}: category_id {category!r} is not among the categories")
        return self._categories[category]


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    size = image.get("width"), image.get("height")
    return size if all(_is_number(side) and side > 0 for side in size) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
