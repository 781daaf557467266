"""Pascal VOC: an XML file for each image, in VOCdevkit's folders or beside the images."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element

from florence_jax.datasets.coco_entries import Size
from florence_jax.datasets.object_set import Gathering, ObjectSet
from florence_jax.datasets.picture_files import picture_of
from florence_jax.datasets.text_rows import DatasetError
from florence_jax.datasets.xml_file import number_of, read_xml, text_of
from florence_jax.processing.image.suffixes import is_image_name
from florence_jax.runtime.text_file import TextFileError, read_text, split_lines

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_Box = tuple[int, str, list[float], str]


def read_voc(path: Path, split: str, image_root: Path | None) -> ObjectSet:
    """Read a folder of Pascal VOC annotations.

    Coordinates are VOC's: pixels counted from 1, both corners inside the box, so that a box reaches
    from `xmin - 1` to `xmax`. Where a corner of the set is below 1 or has a fraction, as CVAT and
    others write them, all are taken as they are. Objects marked `difficult` are learnt as others.

    Args:
        path: VOCdevkit's VOC2012, with Annotations and JPEGImages, or a folder with both kinds of
            files.
        split: a list in ImageSets/Main, such as "train"; "" for every annotation.

    Raises:
        DatasetError: there is no annotation, or the split has no list.
    """
    folder = path / "Annotations" if (path / "Annotations").is_dir() else path
    root = image_root or (path / "JPEGImages" if folder != path else path)
    gathering = Gathering(str(path), root)
    boxes: list[_Box] = []
    difficult = 0
    for file in _files(path, folder, split):
        gathering.files.append(file)
        try:
            read = read_xml(file)
            found = [_object(one, f"{file.name}, object {n}") for n, one in _objects(read)]
        except DatasetError as error:
            gathering.broken.append(str(error))
            continue
        name = text_of(read, "filename") or file.stem
        image = gathering.image(picture_of(root, name, file.stem), _size(read))
        boxes += [(image, *one) for one in found]
        difficult += sum(text_of(one, "difficult") == "1" for _, one in _objects(read))
    _add(gathering, boxes)
    if difficult:
        gathering.notes.append(f"{path}: {difficult} objects marked difficult are learnt as others")
    if folder == path and not split:
        known = {file.stem for file in gathering.files}
        alone = [one.name for one in path.iterdir() if is_image_name(one.name)]
        alone = sorted(name for name in alone if Path(name).stem not in known)
        if alone:
            gathering.notes.append(
                f"{path}: {len(alone)} images have no .xml and are left out, such as {alone[0]}"
            )
    return gathering.done()


def _files(path: Path, folder: Path, split: str) -> list[Path]:
    if not split:
        files = sorted(file for file in folder.glob("*.xml") if not file.name.startswith("."))
        if not files:
            raise DatasetError(f"{folder} holds no .xml of Pascal VOC: name the folder that does")
        return files
    listed = path / "ImageSets" / "Main" / f"{split}.txt"
    try:
        names = [line.split()[0] for line in split_lines(read_text(listed)) if line.strip()]
    except FileNotFoundError:
        raise DatasetError(
            f"{path} has no list {listed.relative_to(path)} of the split {split!r}: leave the "
            "split out to read every annotation"
        ) from None
    except TextFileError as error:
        raise DatasetError(str(error)) from None
    return [folder / f"{name.removesuffix('.xml')}.xml" for name in names]


def _objects(annotation: Element) -> list[tuple[int, Element]]:
    return list(enumerate(annotation.findall("object"), start=1))


def _object(element: Element, place: str) -> tuple[str, list[float], str]:
    label, box = text_of(element, "name"), element.find("bndbox")
    if not label or box is None:
        raise DatasetError(f"{place} has no {'<bndbox>' if label else '<name>'}: add it")
    corners = [number_of(text_of(box, side), f"{side} of {place}") for side in _SIDES]
    return label, corners, place


def _size(annotation: Element) -> Size | None:
    """(width, height); None where the file lacks them or has 0."""
    size = annotation.find("size")
    if size is None:
        return None
    try:
        width, height = (number_of(text_of(size, side), side) for side in ("width", "height"))
    except DatasetError:
        return None  # the image itself says it
    return (width, height) if width > 0 and height > 0 else None


def _add(gathering: Gathering, boxes: list[_Box]) -> None:
    from_zero = next(
        (
            place
            for _, _, corners, place in boxes
            if min(corners[:2]) < 1 or any(side % 1 for side in corners)
        ),
        None,
    )
    if from_zero is not None:
        gathering.notes.append(
            f"{gathering.where}: coordinates count from 0 and not from 1 as VOC's do, judged by "
            f"{from_zero}"
        )
    first = 1.0 if from_zero is None else 0.0
    for image, label, (x0, y0, x1, y1), place in boxes:
        # Two opposite corners, whichever is named first.
        (x0, x1), (y0, y1) = sorted((x0, x1)), sorted((y0, y1))
        gathering.box(image, label, (x0 - first, y0 - first, x1, y1), place)
