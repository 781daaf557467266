"""COCO detection, and other files in its layout."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from florence_jax.batch.image_reader import FileBelow
from florence_jax.batch.job import Item
from florence_jax.datasets.coco_entries import CocoFile, CocoImage, CocoObject, Size
from florence_jax.datasets.image_names import ImageNames, coco_file_names
from florence_jax.datasets.object_set import ObjectSet
from florence_jax.datasets.text_rows import DatasetError
from florence_jax.evaluation.datasets.dataset import (
    Dataset,
    LayoutError,
    find_file,
    find_folder,
    read_json,
)
from florence_jax.evaluation.scoring import label_key
from florence_jax.processing.image import ImageError
from florence_jax.processing.image.load import image_size
from florence_jax.processing.vocabulary import check_no_control_tokens

# Largest relative difference between an image's aspect ratio and the file's, which is rounding.
_SAME_SHAPE = 0.02


def coco_detection(root: Path, split: str) -> Dataset:
    """`annotations/instances_val2017.json` and the folder val2017."""
    path = find_file(
        root,
        (f"annotations/instances_{split}.json", f"instances_{split}.json"),
        "It is in annotations_trainval2017.zip of cocodataset.org, the images are val2017.zip",
    )
    folder = find_folder(root, (split, f"images/{split}"), f"Unpack {split}.zip here")
    return detection_file(path, folder, look=False)


def detection_file(path: Path, folder: Path, *, look: bool = True) -> Dataset:
    """Read a file in the layout of COCO's instances, with images in `folder`.

    The truth of an item is its boxes and their names; crowds are left out of what is drawn, not of
    what is scored.

    Args:
        look: compare the images' sizes with the file's, and scale the boxes of images that are
            stored at another size.

    Raises:
        LayoutError: as `read_coco`, or the file holds no box, or an image has another aspect ratio
            than in the file.
    """
    found = ObjectSet(where=str(path), content=read_json(path), image_root=folder, files=[path])
    return detection_set(found, look=look)


def detection_set(found: ObjectSet, *, look: bool = True) -> Dataset:
    """As `detection_file`, of a data set in any layout.

    Raises:
        LayoutError: as `detection_file`, or a file of an image cannot be read.
    """
    if found.broken:
        raise LayoutError(
            f"{found.where}: {len(found.broken)} files or entries cannot be read, and without them "
            f"the figures would miss objects: {found.broken[0]}"
        )
    return _Detection(found, look).dataset()


class _Detection:
    def __init__(self, found: ObjectSet, look: bool):
        self.path, self.folder, self.look = found.where, Path(found.image_root), look
        self.files = list(found.files)
        names = coco_file_names(found.content)
        known = ImageNames(names)
        self.existing = {name: known.existing(self.folder, name) for name in names}
        try:
            self.file: CocoFile = found.read(image_size=self._stored)
        except DatasetError as error:
            raise LayoutError(str(error)) from None
        self.notes = list(self.file.notes)

    def dataset(self) -> Dataset:
        file = self.file
        if file.orphans:
            name, image_id = file.orphans[0]
            orphans = (
                f"{len(file.orphans)} annotations are of images that the file does not list and "
                f"are left out, such as {name} of image_id {image_id!r:.80}"
            )
            if not file.objects:
                raise LayoutError(
                    f"{self.path}: all {orphans}; its images have ids such as "
                    f"{', '.join(f'{image.id!r:.40}' for image in file.images[:3]) or 'none'}"
                )
            self._note(orphans)
        if not any(one.box is not None and not one.crowd for one in file.objects):
            raise LayoutError(f"{self.path} holds no box of an image: there is nothing to compare")
        numbers = self._categories()
        # pycocotools sorts them.
        plain = all(type(image.id) is int for image in file.images)
        ids = [image.id if plain else number for number, image in enumerate(file.images, start=1)]
        objects: dict[int, list[CocoObject]] = defaultdict(list)
        for one in file.objects:
            if one.box is not None:
                objects[one.image].append(one)
        images, annotations, items = [], [], []
        for number, image in enumerate(file.images):
            size, scale = self._frame(image)
            sides = {} if size is None else {"width": size[0], "height": size[1]}
            images.append({"id": ids[number], **sides})
            truth: dict[str, list[Any]] = {"bboxes": [], "labels": []}
            for one in objects[number]:
                box = [edge * scale[at % 2] for at, edge in enumerate(one.box or ())]
                annotations.append(
                    {
                        "id": one.number,
                        "image_id": ids[number],
                        "category_id": numbers[label_key(one.label or "")],
                        "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                        "area": one.area * scale[0] * scale[1],
                        "iscrowd": int(one.crowd),
                    }
                )
                if not one.crowd:
                    truth["bboxes"].append(box)
                    truth["labels"].append(one.label)
            items.append(
                Item(
                    id=str(image.id),
                    image=FileBelow(str(self.folder), self.existing[image.file_name]),
                    extra={"truth": truth, "image_id": ids[number]},
                )
            )
        annotations.sort(key=lambda annotation: annotation["id"])
        content = {"images": images, "annotations": annotations, "categories": self._named(numbers)}
        return Dataset(items=items, files=self.files, truth={"coco": content}, notes=self.notes)

    def _categories(self) -> dict[str, int]:
        """The category number of each label, by `label_key`."""
        spellings: dict[str, list[str]] = defaultdict(list)
        for label in self.file.labels:
            try:
                check_no_control_tokens(label, "the category")
            except ValueError as error:
                raise LayoutError(f"{self.path}: {error}") from None
            spellings[label_key(label)].append(label)
        for labels in spellings.values():
            if len(labels) > 1:
                self._note(f"the categories {', '.join(map(repr, labels)):.200} are judged as one")
        return {key: number for number, key in enumerate(spellings, start=1)}

    def _named(self, numbers: dict[str, int]) -> list[dict[str, Any]]:
        names = {label_key(label): label for label in reversed(self.file.labels)}
        return [{"id": number, "name": names[key]} for key, number in numbers.items()]

    def _frame(self, image: CocoImage) -> tuple[Size | None, Size]:
        """The size of the image that the model sees, and the scale of the file's boxes to it."""
        stored = self._stored(image.file_name) if self.look else None
        if stored is None or image.size is None or tuple(image.size) == stored:
            return stored or image.size, (1.0, 1.0)
        width, height = image.size
        if abs(stored[0] * height / (stored[1] * width) - 1.0) > _SAME_SHAPE:
            raise LayoutError(
                f"{self.path}: the image {image.file_name!r:.80} is {stored[0]} x {stored[1]} "
                f"pixels as shown (EXIF orientation applied), and the file says {width} x "
                f"{height}: turn the image, or mend its `width`, `height` and boxes"
            )
        return stored, (stored[0] / width, stored[1] / height)

    def _stored(self, name: str) -> Size | None:
        """The size of the stored image; None if it cannot be read, which its row will report."""
        path = self.folder / self.existing[name]
        try:
            if path.resolve().is_relative_to(self.folder.resolve()):
                return image_size(path)
        except (ImageError, OSError, ValueError):
            pass
        return None

    def _note(self, text: str) -> None:
        self.notes.append(f"{self.path}: {text}")
