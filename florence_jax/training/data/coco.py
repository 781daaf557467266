"""Images with objects, in COCO's layout or another: detection, captions, referring expressions."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from florence_jax.datasets.coco_entries import CocoFile, CocoImage, CocoObject, Size
from florence_jax.datasets.image_names import ImageNames, coco_file_names
from florence_jax.datasets.object_layouts import read_object_set
from florence_jax.datasets.object_set import ObjectSet
from florence_jax.datasets.text_rows import DatasetError
from florence_jax.processing import box_to_text
from florence_jax.processing.image import ImageError
from florence_jax.processing.image.load import image_size
from florence_jax.processing.targets import check_label
from florence_jax.training.data.example import DataError, Example, Source
from florence_jax.training.data.storage import Place, as_path, read_value, resolve_inside

CocoTask = Literal[
    "<OD>",
    "<REGION_PROPOSAL>",
    "<OPEN_VOCABULARY_DETECTION>",
    "<CAPTION>",
    "<REGION_TO_CATEGORY>",
    "<REFERRING_EXPRESSION_SEGMENTATION>",
    "<CAPTION_TO_PHRASE_GROUNDING>",
]

_LISTED = ", ".join(get_args(CocoTask))
_LABELLED = ("<OD>", "<OPEN_VOCABULARY_DETECTION>", "<REGION_TO_CATEGORY>")


def _object_set(path: Place, layout: str, split: str, image_root: str | Place | None) -> ObjectSet:
    if layout != "coco":
        if not isinstance(path, Path):
            raise DataError(
                f"{path}: a data set of the layout {layout} is many small files, which are read "
                "from file systems alone: copy it to this machine, or mount the bucket"
            )
        return read_object_set(layout, path, split, Path(image_root) if image_root else None)
    root = as_path(image_root) if image_root else path.parent
    return ObjectSet(where=str(path), content=read_value(path), image_root=root, files=[path])


class Coco(Source):
    """One COCO JSON file as examples of one task.

    - `<OD>`, `<REGION_PROPOSAL>`: one example an image, all its boxes.
    - `<OPEN_VOCABULARY_DETECTION>`: one an image and category that is in it.
    - `<REGION_TO_CATEGORY>`: one a box.
    - `<CAPTION>`: one a caption annotation.
    - `<REFERRING_EXPRESSION_SEGMENTATION>`, `<CAPTION_TO_PHRASE_GROUNDING>`: one an annotation with
      a `caption` (or, as the RefCOCO conversions have it, an image with a `caption`), its polygons
      or its box.

    `florence_jax.datasets.coco_file` says how objects are read. Crowd regions (`iscrowd`) are left
    out. Images without annotations are examples of empty labels for the tasks by image. A file of
    one image that cannot be read is an example that fails, and goes to quarantine.

    Args:
        path: the file, or the folder of a layout that has one.
        task: what is learnt of it.
        image_root: the folder that image names start from; by default that of the layout.
        layout: as `read_object_set` names it.
        split: what selects a split, where the layout has several in one place.

    Attributes:
        notes: what was joined, cut or left out, for the user.
        labels: the names of the classes.
        files: the files that were read.

    Raises:
        DataError: the file is not COCO's layout, or has nothing for the task.
    """

    def __init__(
        self,
        path: str | Place,
        task: str,
        image_root: str | Place | None = None,
        *,
        layout: str = "coco",
        split: str = "",
    ):
        self.path, self.task = as_path(path), task
        if task not in get_args(CocoTask):
            raise DataError(f"{path}: a data set of objects has no {task}, only {_LISTED}")
        try:
            found = _object_set(self.path, layout, split, image_root)
            self.image_root: Place = found.image_root
            self._names = ImageNames(coco_file_names(found.content))
            file = found.read(
                labels=task in _LABELLED,
                boxes=task != "<CAPTION>",
                outlines=task == "<REFERRING_EXPRESSION_SEGMENTATION>",
                image_size=self._image_size,
            )
        except DatasetError as error:
            raise DataError(str(error)) from None
        self.labels, self.faults, self.files = file.labels, file.faults, found.files
        self._broken = found.broken
        self._images, self.notes = file.images, file.notes
        self._refuse(file)
        self._objects: dict[int, list[CocoObject]] = defaultdict(list)
        for found in file.objects:
            if not found.crowd:
                self._objects[found.image].append(found)
        self._items = list(self._numbered(file))
        # Images without things are examples, but a file without any thing teaches to answer
        # nothing: its boxes are missing.
        if not self._items or (
            task != "<CAPTION>" and not any(chosen for _, chosen in self._items)
        ):
            raise DataError(f"{self.path} has no annotations for {task}")

    def __len__(self) -> int:
        return len(self._items) + len(self._broken)

    def __getitem__(self, index: int) -> Example:
        if index >= len(self._items):
            raise DataError(self._broken[index - len(self._items)])
        number, chosen = self._items[index]
        image = self._images[number]
        where = f"{self.path} {self.task}:{index}"
        prompt, labels = self._asked(image, chosen, where)
        return Example(
            id=where,
            image=resolve_inside(self.image_root, self._file_name(image.file_name), where),
            task=self.task,
            prompt=prompt,
            labels=labels,
            size=image.size,
        )

    def _refuse(self, file: CocoFile) -> None:
        """Annotations of other images, and names that labels cannot hold."""
        if file.orphans:
            name, image_id = file.orphans[0]
            raise DataError(
                f"{self.path}: {len(file.orphans)} annotations are of images that are not among "
                f"the images; {name} is of image_id {image_id!r:.80}, which is not among the "
                "images: add the image, or remove its annotations"
            )
        if self.task in _LABELLED:
            for label in {found.label for found in file.objects if found.label is not None}:
                try:
                    check_label(self.task, label)
                except ValueError as error:
                    raise DataError(f"{self.path}: category {label!r:.80}: {error}") from None

    def _image_size(self, name: str) -> Size | None:
        """The size of an image on this machine; a bucket's images are fetched when drawn."""
        if not isinstance(self.image_root, Path):
            return None
        try:
            return image_size(
                resolve_inside(self.image_root, self._file_name(name), str(self.path))
            )
        except (ImageError, DataError):
            return None  # the row says so when it is drawn

    def _file_name(self, name: str) -> str:
        root = self.image_root
        return self._names.existing(root, name) if isinstance(root, Path) else name

    def _numbered(self, file: CocoFile) -> Iterator[tuple[int, list[CocoObject]]]:
        """(number of the image, what of it is asked about) of every example."""
        for number, image in enumerate(self._images):
            found = self._objects[number]
            boxes = [one for one in found if one.box is not None]
            if self.task in ("<OD>", "<REGION_PROPOSAL>"):
                yield number, boxes
            elif self.task == "<OPEN_VOCABULARY_DETECTION>":
                present = {one.label for one in boxes}
                for label in (label for label in file.labels if label in present):
                    yield number, [one for one in boxes if one.label == label]
            elif self.task == "<REGION_TO_CATEGORY>":
                yield from ((number, [one]) for one in boxes)
            elif self.task == "<CAPTION>":
                yield from ((number, [one]) for one in found if one.caption)
            else:
                yield from ((number, [one]) for one in boxes if one.caption or image.caption)

    def _asked(
        self, image: CocoImage, chosen: list[CocoObject], where: str
    ) -> tuple[str, str | dict[str, Any]]:
        """(what follows the task token, the labels)."""
        if self.task == "<CAPTION>":
            return "", (chosen[0].caption or "").strip()
        boxes = [list(one.box or ()) for one in chosen]
        names = [one.label or "" for one in chosen]
        if self.task == "<REGION_PROPOSAL>":
            return "", {"bboxes": boxes}
        if self.task == "<OD>":
            return "", {"bboxes": boxes, "labels": names}
        if self.task == "<OPEN_VOCABULARY_DETECTION>":
            return names[0], {"bboxes": boxes, "bboxes_labels": names}
        if self.task == "<REGION_TO_CATEGORY>":
            if image.size is None:
                raise DataError(
                    f"{where}: image {image.id!r:.80} has no `width` and `height`, nor can its "
                    "image be read: add them"
                )
            region = box_to_text(boxes[0], image.size)
            return region, names[0] + region
        phrase = (chosen[0].caption or image.caption or "").strip()
        if self.task == "<CAPTION_TO_PHRASE_GROUNDING>":
            return phrase, {"bboxes": boxes, "labels": [phrase]}
        outline = chosen[0].outline
        if outline is None:
            raise DataError(f"{where} has no polygons to learn <REFERRING_EXPRESSION_SEGMENTATION>")
        return phrase, {"polygons": [[list(part) for part in outline.polygons]], "labels": [""]}
