"""Image sources (paths, bytes, slices, pages), and reading them in any process, without jax."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from florence_jax.processing.image import ImageError
from florence_jax.processing.image.crop import CropConfig, crop_picture
from florence_jax.processing.image.load import MAX_BYTES, count_pages, load_image_and_notes
from florence_jax.processing.image.pixels import resize_image


@dataclass(frozen=True)
class FileBelow:
    """A file that a row of data names; it must be below `root`.

    Attributes:
        root: the directory.
        name: path below it.
        follow_links: follow links out of the root. Set it for files found in a directory that the
            user named, but not for rows, whose author may be anybody.
    """

    root: str
    name: str
    follow_links: bool = False


@dataclass(frozen=True)
class FileSlice:
    """`size` bytes of a file from `offset` on, for example a member of a tar."""

    path: str
    offset: int
    size: int


@dataclass(frozen=True)
class ImagePage:
    """One page, counted from 1, of a file with several pages."""

    file: str | bytes | FileBelow | FileSlice
    page: int


# Paths are trusted: the user named them, or the directory in which they were found.
ImageSource = str | bytes | FileBelow | FileSlice | ImagePage


def open_image(source: ImageSource) -> Image.Image:
    """Read an image, upright, in RGB.

    Raises:
        ImageError: the image cannot be read, or is outside of its root.
    """
    return open_with_notes(source)[0]


def open_with_notes(source: ImageSource) -> tuple[Image.Image, tuple[str, ...]]:
    """Read an image, and notes about the assumptions that were made for it."""
    if isinstance(source, ImagePage):
        return load_image_and_notes(_file(source.file), page=source.page)
    return load_image_and_notes(_file(source))


def page_count(source: ImageSource) -> int:
    """Number of pages or frames of an image; 1 if that cannot be told.

    Raises:
        ImageError: there are too many, or the image is outside of its root.
    """
    return 1 if isinstance(source, ImagePage) else count_pages(_file(source))


def resized_pixels(
    source: ImageSource, image_size: tuple[int, int], resample: int
) -> tuple[tuple[int, int], np.ndarray, tuple[str, ...]]:
    """Read and resize an image: its (width, height), uint8[H, W, 3] at `image_size`, and notes.

    Raises:
        ImageError: as `open_image`.
    """
    image, notes = open_with_notes(source)
    height, width = image_size
    pixels = np.asarray(resize_image(image, (width, height), resample))
    return image.size, pixels, notes


def whole_pixels(
    source: ImageSource,
) -> tuple[tuple[int, int], np.ndarray, tuple[str, ...]]:
    """Read an image: its (width, height), uint8[H, W, 3] at that size, and notes.

    Raises:
        ImageError: as `open_image`.
    """
    image, notes = open_with_notes(source)
    return image.size, np.asarray(image), notes


def cropped_pixels(
    source: ImageSource, config: CropConfig
) -> tuple[tuple[int, int], np.ndarray, tuple[str, ...], str]:
    """Read, resize and crop an image.

    Returns:
        Its (width, height), uint8[H, W, 3] at `config.size`, notes, and the sha256 of the encoded
        image in hexadecimal; of a page, that of its whole file.

    Raises:
        ImageError: as `open_image`.
    """
    image, notes = open_with_notes(source)
    pixels = np.asarray(crop_picture(image, config))
    file = _file(source.file if isinstance(source, ImagePage) else source)
    if isinstance(file, bytes):
        return image.size, pixels, notes, hashlib.sha256(file).hexdigest()
    try:
        with open(file, "rb") as stream:
            return image.size, pixels, notes, hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ImageError(f"{file} cannot be read ({error})") from error


def image_name(source: ImageSource) -> str | None:
    """The name of the image for people; None if it came without one."""
    match source:
        case FileBelow(name=name):
            return name
        case str():
            return source
        case ImagePage(file=file):
            return image_name(file)
    return None


def _file(source: str | bytes | FileBelow | FileSlice) -> str | bytes | Path:
    """The source as `load_image` takes it."""
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
