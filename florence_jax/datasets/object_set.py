"""Images with objects in any layout, gathered in the form of a COCO file.

Each layout's reader fills a `Gathering`; `read_coco` then judges all of them by the same rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from florence_jax.datasets.coco_entries import PLACE, CocoFile, Size, Unit
from florence_jax.datasets.coco_file import read_coco
from florence_jax.datasets.faults import Fault


@dataclass(frozen=True, kw_only=True)
class ObjectSet:
    """Images with objects.

    Attributes:
        where: the file or folder, for messages.
        content: the value of a COCO file.
        image_root: the folder that its file names start from.
        files: the files that were read.
        unit: the unit of all coordinates; None where the numbers must tell.
        notes: sentences for the user about what was left out.
        faults: single things that are wrong, and left out.
        broken: a sentence for each file or entry that cannot be read, whose image is therefore no
            example.
    """

    where: str
    content: Any
    image_root: Any
    files: Sequence[Any]
    unit: Unit | None = None
    notes: Sequence[str] = ()
    faults: Sequence[Fault] = ()
    broken: Sequence[str] = ()

    def read(
        self,
        *,
        labels: bool = True,
        boxes: bool = True,
        outlines: bool = False,
        image_size: Callable[[str], Size | None] = lambda _: None,
    ) -> CocoFile:
        """The images and objects, see `read_coco`; its notes and faults are those of both.

        Raises:
            DatasetError: as `read_coco`.
        """
        found = read_coco(
            self.content,
            self.where,
            labels=labels,
            boxes=boxes,
            outlines=outlines,
            unit=self.unit,
            image_size=image_size,
        )
        found.notes[:0] = self.notes
        found.faults[:0] = self.faults
        return found


@dataclass
class Gathering:
    """Collects the images and objects of a layout.

    Attributes:
        where: the file or folder, for messages.
        image_root: the folder that file names start from.
        labels: names of classes in the order of the layout; others follow as they are found.
    """

    where: str
    image_root: Path
    labels: Iterable[str] = ()
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._categories = {label: number for number, label in enumerate(self.labels)}
        self._left_out: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def image(self, file_name: str, size: Size | None) -> int:
        """Add an image; returns the number that its objects give."""
        sides = {} if size is None else {"width": size[0], "height": size[1]}
        self._images.append({"id": len(self._images), "file_name": file_name, **sides})
        return len(self._images) - 1

    def box(self, image: int, label: str, corners: Sequence[float], place: str) -> None:
        """Add an object by its corners (x0, y0, x1, y1) in pixels."""
        x0, y0, x1, y1 = corners
        self._add(image, label, place, {"bbox": [x0, y0, x1 - x0, y1 - y0]})

    def polygons(
        self, image: int, label: str, polygons: Sequence[Sequence[float]], place: str
    ) -> None:
        """Add an object by its polygons, x and y alternating in pixels; its box is around them."""
        self._add(image, label, place, {"segmentation": [list(part) for part in polygons]})

    def mask(self, image: int, label: str, rle: Mapping[str, Any], place: str) -> None:
        """Add an object by COCO's run-length encoding of its mask."""
        self._add(image, label, place, {"segmentation": dict(rle)})

    def leave_out(self, what: str, place: str) -> None:
        """Count something that has no box, such as "points"; a note says so at the end."""
        self._left_out[what] += 1
        self._first.setdefault(what, place)

    def fault(self, kind: str, place: str, text: str) -> None:
        """Write down something that is wrong and left out."""
        self.faults.append(Fault(kind=kind, where=f"{self.where}: {place}", text=text))

    def done(self) -> ObjectSet:
        """Everything that was added."""
        notes = [
            f"{self.where}: {count} {what} are left out, such as {self._first[what]}"
            for what, count in self._left_out.items()
        ]
        content = {
            "images": self._images,
            "annotations": self._annotations,
            "categories": [
                {"id": number, "name": label} for label, number in self._categories.items()
            ],
        }
        return ObjectSet(
            where=self.where,
            content=content,
            image_root=self.image_root,
            files=self.files,
            unit="pixels",
            notes=[*self.notes, *notes],
            faults=self.faults,
            broken=self.broken,
        )

    def _add(self, image: int, label: str, place: str, shape: Mapping[str, Any]) -> None:
        category = self._categories.setdefault(label, len(self._categories))
        self._annotations.append(
            {"image_id": image, "category_id": category, PLACE: place, **shape}
        )
