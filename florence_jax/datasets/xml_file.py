"""Read XML files of annotations; entities, by which a small file can become huge, are refused."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

from florence_jax.datasets.coco_entries import is_number
from florence_jax.datasets.text_rows import DatasetError
from florence_jax.runtime.text_file import TextFileError, read_bytes


def read_xml(path: Path) -> ElementTree.Element:
    """The root element of an XML file.

    Raises:
        DatasetError: it is not XML, declares entities, or cannot be read.
    """

    def refuse(name: str, *_: object) -> NoReturn:
        raise DatasetError(
            f"{path} declares the XML entity {name!r:.40}, which no annotation needs: remove its "
            "<!DOCTYPE>"
        )

    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(read_bytes(path), True)
    except expat.ExpatError as error:
        raise DatasetError(f"{path} is not XML ({error}): write or download it again") from None
    except TextFileError as error:
        raise DatasetError(str(error)) from None
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from None
    return builder.close()


def text_of(element: ElementTree.Element, name: str) -> str:
    """The text of a child; "" where there is none."""
    return (element.findtext(name) or "").strip()


def number_of(text: str | None, what: str) -> float:
    """A finite number from a text.

    Raises:
        DatasetError: it is none; `what` names it.
    """
    try:
        number = float(text or "")
    except ValueError:
        number = None
    if not is_number(number):
        raise DatasetError(f"{what} is {text!r:.40}, expected a number")
    return number  # pyright: ignore[reportReturnType]
