"""Read a COCO detection file: links checked, ids joined, boxes as corners in pixels.

The trainer and the evaluator read COCO files here, so that both take one file for the same thing:

- Annotations get new numbers: their ids may be missing, repeated, or start at 0.
- An id of an image or a category may be a number in one place and its text in another.
- `area`, `iscrowd` and `id` of an annotation may be missing.
- Categories of one name are one category.
- Boxes are in pixels, or in shares of the image's sides; the whole file decides (`unit_of`).
- An annotation without `bbox` has the box around its `segmentation`: polygons, or RLE.
- Boxes are cut at the image's edges. Those without area in the image are left out and counted.

Everything else that is not COCO's layout is refused by name. `CocoFile.notes` says what was joined,
cut or left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from florence_jax.datasets.coco_entries import (
    OUTSIDE,
    PLACE,
    CocoFile,
    CocoImage,
    CocoObject,
    Corners,
    Size,
    Unit,
    box_fault,
    box_within,
    doubts,
    is_number,
    other_boxes,
    repeated,
    unit_of,
)
from florence_jax.datasets.coco_fields import (
    area_of,
    checked_size,
    is_caption,
    polygons_of,
    size_of,
)
from florence_jax.datasets.faults import BoxFault, Fault
from florence_jax.datasets.outlines import outline_of
from florence_jax.datasets.text_rows import DatasetError


def read_coco(
    content: Any,
    where: str,
    *,
    labels: bool = True,
    boxes: bool = True,
    outlines: bool = False,
    unit: Unit | None = None,
    image_size: Callable[[str], Size | None] = lambda _: None,
) -> CocoFile:
    """Read a COCO file from its JSON value.

    Args:
        content: the value.
        where: the file, for messages.
        labels: whether every object needs a category with a name.
        boxes: whether every object needs a box.
        outlines: whether `CocoObject.outline` is wanted.
        unit: the unit of all coordinates, where it is known; None judges it by the numbers.
        image_size: (width, height) of the image of a `file_name`, asked for where the file
            lacks `width` and `height`.

    Raises:
        DatasetError: it is not COCO's layout, or something in it means two things.
    """
    return _Reader(where, labels, boxes, outlines, unit, image_size).read(content)


@dataclass(frozen=True)
class _Raw:
    """An annotation whose links are resolved, and whose numbers are not yet pixels."""

    name: str
    number: int
    image: int
    label: str | None
    box: tuple[float, float, float, float] | None
    record: Mapping[str, Any]
    crowd: bool


class _Reader:
    def __init__(
        self,
        where: str,
        labels: bool,
        boxes: bool,
        outlines: bool,
        unit: Unit | None,
        image_size: Callable[[str], Size | None],
    ):
        self.where, self.needs_labels, self.needs_boxes = where, labels, boxes
        self.needs_outlines, self.image_size = outlines, image_size
        self.unit: Unit | None = unit
        self.faults: list[Fault] = []
        self.notes: list[str] = []
        self.orphans: list[tuple[str, Any]] = []

    def read(self, content: Any) -> CocoFile:
        if not isinstance(content, Mapping):
            raise self._error(
                f"holds a JSON {type(content).__name__}, and lacks COCO's `images` and "
                "`annotations`: expected an object with both"
            )
        missing = [key for key in ("images", "annotations") if key not in content]
        if missing:
            raise self._error(
                f"lacks COCO's `images` and `annotations`: there is no "
                f"{' and no '.join(f'`{key}`' for key in missing)}, but "
                f"{', '.join(map(str, list(content)[:8])) or 'nothing':.200}"
            )
        self.images, self.image_of = self._images(self._entries(content, "images"))
        self.labels, self.label_of = self._categories(self._entries(content, "categories"))
        raw = [
            found
            for number, record in enumerate(self._entries(content, "annotations"), start=1)
            if (found := self._annotation(number, record)) is not None
        ]
        objects = self._objects(raw) if self.needs_boxes else [_without_box(one) for one in raw]
        return CocoFile(
            images=self.images,
            objects=objects,
            labels=self.labels,
            orphans=self.orphans,
            notes=self.notes,
            faults=self.faults,
        )

    def _entries(self, content: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
        entries = content.get(name)
        entries = [] if entries is None and name == "categories" else entries
        if not isinstance(entries, list):
            raise self._error(f"`{name}` is {type(entries).__name__}, expected a list")
        for number, entry in enumerate(entries):
            if not isinstance(entry, Mapping):
                raise self._error(f"{name}[{number}] is {entry!r:.80}, expected an object")
        return entries

    def _images(
        self, entries: Sequence[Mapping[str, Any]]
    ) -> tuple[list[CocoImage], dict[str, int]]:
        images: list[CocoImage] = []
        image_of: dict[str, int] = {}
        for number, entry in enumerate(entries):
            name = f"images[{number}]"
            key = self._id(self._value(entry, "id", name), f"the id of {name}")
            file_name = self._text(self._value(entry, "file_name", name), f"file_name of {name}")
            if key in image_of:
                first = images[image_of[key]].file_name
                if first != file_name:
                    raise self._error(
                        f"two images have the id {entry['id']!r:.80}, {first!r:.80} and "
                        f"{file_name!r:.80}: "
                        "give each an id of its own, and their annotations the right image_id"
                    )
                self._note(f"the image {file_name!r:.80} is listed twice and counts once")
                continue
            image_of[key] = len(images)
            caption = entry.get("caption")
            images.append(
                CocoImage(
                    id=entry["id"],
                    file_name=file_name,
                    size=size_of(entry) or checked_size(self.image_size(file_name)),
                    caption=caption if isinstance(caption, str) else None,
                )
            )
        repeated = Counter(image.file_name for image in images)
        names = [name for name, count in repeated.items() if count > 1]
        if names and self.needs_labels:
            self._note(
                f"{len(names)} images are listed under several image ids, such as "
                f"{names[0]!r:.80}: "
                "each listing is asked by itself, with its own annotations"
            )
        return images, image_of

    def _categories(self, entries: Sequence[Mapping[str, Any]]) -> tuple[list[str], dict[str, str]]:
        label_of: dict[str, str] = {}
        seen: Counter[str] = Counter()
        for number, entry in enumerate(entries):
            place = f"categories[{number}]"
            key = self._id(self._value(entry, "id", place), f"the id of {place}")
            label = self._text(self._value(entry, "name", place), f"name of {place}").strip()
            if label_of.get(key, label) != label:
                raise self._error(
                    f"two categories have the id {entry['id']!r:.80}, {label_of[key]!r:.80} and "
                    f"{label!r:.80}: "
                    "give each an id of its own, and their annotations the right category_id"
                )
            label_of[key] = label
            seen[label] += 1
        for label, count in seen.items():
            if count > 1:
                self._note(f"{count} categories are called {label!r:.80} and count as one")
        return list(seen), label_of

    def _annotation(self, number: int, record: Mapping[str, Any]) -> _Raw | None:
        name = record.get(PLACE) or f"annotations[{number - 1}]"
        if "id" in record and PLACE not in record:
            name += f" (id {record['id']!r:.40})"
        if "image_id" not in record:
            raise self._error(f"annotations[{number - 1}] has no `image_id`: {record!r:.80}")
        image_id = record["image_id"]
        image = self.image_of.get(self._id(image_id, f"the image_id of {name}"))
        if image is None:
            self.orphans.append((name, image_id))
            return None
        return _Raw(
            name=name,
            number=number,
            image=image,
            label=self._label(record, name, image_id) if self.needs_labels else None,
            box=self._bbox(record, name, image_id) if self.needs_boxes else None,
            record=record,
            crowd=self._crowd(record, name),
        )

    def _label(self, record: Mapping[str, Any], name: str, image_id: Any) -> str | None:
        if record.get("category_id") is None:
            if is_caption(record):
                return None
            raise self._error(
                f"{name} of image_id {image_id!r:.80} has no `category_id`, and objects need names"
            )
        category = record["category_id"]
        label = self.label_of.get(self._id(category, f"the category_id of {name}"))
        if label is None:
            has = ", ".join(f"{key:.20}" for key in list(self.label_of)[:12]) or "no categories"
            raise self._error(
                f"the category_id {category!r:.80} of {name} is not among the categories ({has}): "
                "add the category with its name, or remove its annotations"
            )
        return label

    def _bbox(
        self, record: Mapping[str, Any], name: str, image_id: Any
    ) -> tuple[float, float, float, float] | None:
        box = record.get("bbox")
        if box is None or box == []:
            return None
        if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
            raise self._error(
                f"the bbox of {name} of image_id {image_id!r:.80} is {box!r:.80}, expected four "
                "finite numbers [x, y, width, height]"
            )
        x, y, width, height = map(float, box)
        return x, y, width, height

    def _crowd(self, record: Mapping[str, Any], name: str) -> bool:
        crowd = record.get("iscrowd")
        if crowd in (None, 0, 1, "0", "1", ""):
            return crowd in (1, "1")
        raise self._error(f"the iscrowd of {name} is {crowd!r:.40}, expected 0 or 1")

    def _objects(self, raw: Sequence[_Raw]) -> list[CocoObject]:
        units: Unit = self.unit or unit_of(
            ((one.name, one.box) for one in raw if one.box is not None), self.where, self.notes
        )
        outline_unit = self.unit
        objects: list[CocoObject] = []
        left_out: dict[str, list[str]] = {}
        cut = 0
        placed: list[tuple[Corners, Size | None]] = []
        for one in raw:
            size, shown = self.images[one.image].size, one.record.get("segmentation")
            outline = None
            if (one.box is None or (self.needs_outlines and not one.crowd)) and shown:
                if outline_unit is None:
                    outline_unit = self._unit_of_outlines(raw)
                scale = self._scale(outline_unit, one)
                outline = outline_of(shown, size, scale, f"{self.where}: {one.name}")
            if one.box is not None:
                sx, sy = self._scale(units, one)
                x, y, width, height = one.box
                corners = (x * sx, y * sy, (x + width) * sx, (y + height) * sy)
                placed.append((corners, size))
            elif outline is not None:
                corners = outline.box
            elif is_caption(one.record):
                objects.append(_without_box(one))
                continue
            else:
                raise self._error(
                    f"{one.name} has neither a `bbox` nor a `segmentation`: add one of them, or "
                    "remove the annotation, for without it the image would teach that nothing "
                    "is there"
                )
            box, fault = box_within(corners, size)
            if fault:
                left_out.setdefault(fault, []).append(
                    f"{one.name}, bbox {one.record.get('bbox')!s:.80}"
                )
                self._fault("outside" if fault == OUTSIDE else "empty", one, corners)
                continue
            if box != corners:
                cut += 1
                self._fault("cut", one, corners)
            objects.append(
                replace(
                    _without_box(one),
                    box=box,
                    outline=outline,
                    area=area_of(one.record, box, of_pixels=units == "pixels"),
                )
            )
        refused = other_boxes(placed, left_out.get(OUTSIDE, []))
        if refused and self.unit is None:
            raise self._error(refused)
        for fault, names in left_out.items():
            self._note(
                f"{len(names)} of {len(raw)} annotations {fault} and are left out, such as "
                f"{names[0]}"
            )
        if cut:
            self._note(f"{cut} boxes leave their images and are cut at the edges")
        for doubt in doubts(objects, placed):
            self._note(doubt)
        by_number = {one.number: one for one in raw}
        for again in repeated(objects):
            self._fault("repeated", by_number[again.number], again.box or ())
        return objects

    def _fault(self, kind: BoxFault, one: _Raw, corners: Sequence[float]) -> None:
        where = f"{self.where}: {one.name}"
        self.faults.append(box_fault(kind, where, self.images[one.image], corners))

    def _unit_of_outlines(self, raw: Sequence[_Raw]) -> Unit:
        """The unit of polygons, which may be pixels while boxes are fractions."""
        numbers = (
            (one.name, part)
            for one in raw
            for part in polygons_of(one.record.get("segmentation"))
            if isinstance(part, list) and part and all(map(is_number, part))
        )
        return unit_of(numbers, self.where, [], what="segmentation")

    def _scale(self, unit: Unit, one: _Raw) -> Size:
        if unit == "pixels":
            return 1.0, 1.0
        image = self.images[one.image]
        if image.size is None:
            raise self._error(
                f"its boxes are shares of the images' sides, and image {image.id!r:.80} has no "
                f"`width` and `height`, nor can the image {image.file_name!r:.80} be read: add "
                "them"
            )
        return image.size

    def _id(self, value: Any, what: str) -> str:
        """An id as text, so that 1, 1.0 and "1" are one."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise self._error(f"{what} is {value!r:.80}, expected a number or a text")
        return str(value).strip()

    def _value(self, entry: Mapping[str, Any], key: str, name: str) -> Any:
        if key not in entry:
            raise self._error(f"{name} has no `{key}`: {entry!r:.80}")
        return entry[key]

    def _text(self, value: Any, what: str) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self._error(f"the {what} is {value!r:.80}, expected a text")
        return value

    def _note(self, text: str) -> None:
        self.notes.append(f"{self.where}: {text}")

    def _error(self, text: str) -> DatasetError:
        return DatasetError(f"{self.where}: {text}")


def _without_box(one: _Raw) -> CocoObject:
    caption = one.record.get("caption")
    return CocoObject(
        number=one.number,
        image=one.image,
        label=one.label,
        box=None,
        outline=None,
        area=0.0,
        crowd=one.crowd,
        caption=caption if isinstance(caption, str) and caption.strip() else None,
    )
