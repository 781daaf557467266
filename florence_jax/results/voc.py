"""Pascal VOC: one XML file for each image."""

from __future__ import annotations

import os
import re
from xml.etree import ElementTree

import numpy as np

from florence_jax.results.instances import Instance
from florence_jax.results.rows import Row, class_name, image_name, shapes, size_of

# Characters that XML 1.0 cannot write.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def voc_xml(row: Row) -> str:
    """Write the row as a Pascal VOC annotation.

    Coordinates are VOC's: whole pixels that count from 1, both corners inside the box. Quads and
    outlines have the box around them, and their points as `<polygon>` (x1, y1, x2, y2, ...), which
    `supervision` reads.

    Raises:
        UnsuitableRowError: the row is an error, or holds text.
    """
    found, (width, height) = shapes(row, "voc"), size_of(row)
    root = ElementTree.Element("annotation")
    folder, name = os.path.split(image_name(row))
    _text(root, "folder", os.path.basename(folder))
    _text(root, "filename", name)
    size = ElementTree.SubElement(root, "size")
    for tag, number in (("width", width), ("height", height), ("depth", 3)):
        _text(size, tag, str(number))
    has_outlines = any(one.kind == "polygons" for one in found)
    _text(root, "segmented", str(int(has_outlines)))
    for instance in found:
        root.append(_object(instance, (width, height)))
    ElementTree.indent(root)
    return f"{ElementTree.tostring(root, encoding='unicode')}\n"


def _object(instance: Instance, size: tuple[int, int]) -> ElementTree.Element:
    element = ElementTree.Element("object")
    _text(element, "name", class_name(instance.label))
    for tag, value in (("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
        _text(element, tag, value)
    if instance.score is not None:
        _text(element, "score", f"{instance.score:.6f}")
    x0, y0, x1, y1 = instance.bounds()
    box = ElementTree.SubElement(element, "bndbox")
    corners: dict[str, int] = {}
    for axis, near, far, limit in (("x", x0, x1, size[0]), ("y", y0, y1, size[1])):
        # The far edge of the last pixel inside is that pixel's number, from 1.
        corners[f"{axis}min"] = first = min(max(round(near) + 1, 1), limit)
        corners[f"{axis}max"] = min(max(round(far), first), limit)
    for tag in ("xmin", "ymin", "xmax", "ymax"):
        _text(box, tag, str(corners[tag]))
    for part in instance.polygons():
        outline = ElementTree.SubElement(element, "polygon")
        for number, (x, y) in enumerate(np.rint(part).astype(int).tolist(), start=1):
            _text(outline, f"x{number}", str(x + 1))
            _text(outline, f"y{number}", str(y + 1))
    return element


def _text(parent: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = _NO_XML.sub("\ufffd", text)
