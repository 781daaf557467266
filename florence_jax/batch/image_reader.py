"""Where pictures come from, and reading them in whichever process: no jax, nothing heavy."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from florence_jax.processing.errors import ImageError
from florence_jax.processing.image import MAX_BYTES, count_pages, load_image_and_notes
from florence_jax.processing.pixels import resize_picture


@dataclass(frozen=True)
class FileBelow:
    """A file that a row of data names: it must lie below `root`.

    Attributes:
        follow_links: take links out of the root, as for files found in a directory that the user
            named; rows, which may be anybody's, do not have it.
    """

    root: str
    name: str
    follow_links: bool = False


@dataclass(frozen=True)
class FileSlice:
    """`size` bytes of a file from `offset` on, such as a member of a tar."""

    path: str
    offset: int
    size: int


@dataclass(frozen=True)
class ImagePage:
    """One page, counted from 1, of a file with several."""

    file: str | bytes | FileBelow | FileSlice
    page: int


# A path is trusted: the user named it, or it was found in a directory that the user named.
ImageSource = str | bytes | FileBelow | FileSlice | ImagePage


def open_picture(source: ImageSource) -> Image.Image:
    """The picture, upright, in RGB.

    Raises:
        ImageError: it cannot be read, or lies out of its root.
    """
    return open_with_notes(source)[0]


def open_with_notes(source: ImageSource) -> tuple[Image.Image, tuple[str, ...]]:
    """As `open_picture`, and the assumptions that the picture was read on."""
    if isinstance(source, ImagePage):
        return load_image_and_notes(_file(source.file), page=source.page)
    return load_image_and_notes(_file(source))


def page_count(source: ImageSource) -> int:
    """How many pages or frames a picture has; 1 where that cannot be told.

    Raises:
        ImageError: too many, or the picture lies out of its root.
    """
    return 1 if isinstance(source, ImagePage) else count_pages(_file(source))


def resized_pixels(
    source: ImageSource, image_size: tuple[int, int], resample: int
) -> tuple[tuple[int, int], np.ndarray, tuple[str, ...]]:
    """The upright picture's (width, height), uint8[H, W, 3] at `image_size` = (H, W), and notes.

    Raises:
        ImageError: as `open_picture`.
    """
    picture, notes = open_with_notes(source)
    height, width = image_size
    pixels = np.asarray(resize_picture(picture, (width, height), resample))
    return picture.size, pixels, notes


def image_name(source: ImageSource) -> str | None:
    """What a person knows the picture by; None where it came without a name."""
    match source:
        case FileBelow(name=name):
            return name
        case str():
            return source
        case ImagePage(file=file):
            return image_name(file)
    return None


def _file(source: str | bytes | FileBelow | FileSlice) -> str | bytes | Path:
    """What `load_image` takes."""
    if isinstance(source, FileBelow):
        return _contained(source)
    return _slice(source) if isinstance(source, FileSlice) else source


def _contained(source: FileBelow) -> Path:
    resolved = os.path.abspath if source.follow_links else os.path.realpath
    root = Path(resolved(source.root))
    try:
        path = Path(resolved(root / source.name))
    except ValueError as error:  # a null byte, or half of a surrogate pair
        raise ImageError(f"image {source.name!r} is no file name ({error})") from error
    if not path.is_relative_to(root):
        raise ImageError(
            f"image {source.name!r} leads out of {source.root}: rows name files below it alone "
            "(another root is chosen by --image-root)"
        )
    return path


def _slice(source: FileSlice) -> bytes:
    if source.size > MAX_BYTES:
        raise ImageError(
            f"the image at byte {source.offset} of {source.path} has {source.size} bytes, more "
            f"than {MAX_BYTES}: shrink it"
        )
    try:
        with open(source.path, "rb") as file:
            file.seek(source.offset)
            content = file.read(source.size)
    except OSError as error:
        raise ImageError(f"{source.path} cannot be read ({error})") from error
    if len(content) < source.size:
        raise ImageError(
            f"{source.path} ends before byte {source.offset + source.size}, where an image should: "
            "copy it again"
        )
    return content
