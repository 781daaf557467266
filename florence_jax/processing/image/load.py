"""Load an image from any source as an upright RGB image, or raise a clear `ImageError`."""

from __future__ import annotations

import dataclasses
import os
import warnings
from contextlib import nullcontext
from typing import Any

import numpy as np
from PIL import Image

from florence_jax.processing.image import ImageError, ImageWarning
from florence_jax.processing.image.color import array_to_rgb, image_to_rgb
from florence_jax.processing.image.deep_color import (
    LOW_BITS_LOST,
    deep_color_to_rgb,
    eight_bit_palette,
    is_dark,
    is_sixteen_bit_ppm,
    joined_bytes,
    loses_low_bits,
    low_byte_mode,
    ppm_samples,
)
from florence_jax.processing.image.formats import (
    decoding_error,
    no_pil_limit,
    open_encoded,
    pil_limit,
    refuse_misread,
    without_refused_texts,
)
from florence_jax.processing.image.pdf import count_pdf_pages, is_pdf, pdf_page, pdf_page_size
from florence_jax.processing.image.sample_range import declared_by
from florence_jax.runtime.text_file import missing_file_hint, special_kind

MAX_PIXELS = 100_000_000
MAX_BYTES = 256 * 1024 * 1024
# Resizing needs 32 bytes for each pixel of a side, whatever the other side is.
MAX_SIDE = 1_000_000
# A file of this many pages is no image.
MAX_PAGES = 10_000

SEVERAL_PAGES = (
    "an image has several pages or frames, and the first is read: `--all-pages` reads them all, "
    "and in Python `load_image(..., page=2)` the second"
)
_SHOWN_NAME = 300

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(
    source: Any,
    *,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    apply_exif: bool = True,
    page: int | None = None,
) -> Image.Image:
    """Load one image as a new RGB `PIL.Image.Image`; the source is left unchanged.

    Samples become 8-bit by these rules (`sample_range` has the reasons):

    - 16-bit and 32-bit integers are scaled from the range that the file declares: TIFF's
      BitsPerSample and (S)MaxSampleValue, PNG's sBIT, a PGM's maximum, JPEG 2000's depth. Without
      one, the smallest of 8, 10, 12, 14 and 16 bits that holds the largest value is the range.
    - Floats are 0..1 if nothing exceeds 1, or 2 with fractions, and 0..255 otherwise. Overshoot of
      a few percent is clipped. Other floats in a file (depth maps) are stretched from their
      smallest to their largest value; in an array they are refused.

    Where that is a guess, an `ImageWarning` says so.

    Args:
        source: a path (str or PathLike), encoded bytes, a PIL image of any mode, or an array uint8,
            uint16, bool or float, or integers within 0..255, [H, W] or [H, W, 1 | 3 | 4]. The
            format is read from the content, never from the file name. HEIC needs the extra "heif",
            and a PDF the extra "pdf".
        max_pixels: refuse an image with more, judged by its header before anything is decoded. No
            side may have more than 1,000,000.
        max_bytes: refuse a file or bytes with more.
        apply_exif: turn the image upright by its EXIF orientation, as viewers and browsers do,
            for files, bytes and PIL images alike: boxes then refer to the image as the user sees
            it, and `image.size` of the result is the ``image_size`` to parse with. False keeps the
            stored frame (except of TIFF and HEIC, which their decoders turn).
        page: page of a file with several, or frame of an animation, counted from 1. None is the
            first (HEIC's main image), and warns where there are more.

    Raises:
        ImageError: missing, empty, truncated, damaged, too large, or not an image.
    """
    image, notes = load_image_and_notes(
        source, max_pixels=max_pixels, max_bytes=max_bytes, apply_exif=apply_exif, page=page
    )
    for note in notes:
        warnings.warn(note, ImageWarning, stacklevel=2)
    return image


def load_image_and_notes(
    source: Any,
    *,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    apply_exif: bool = True,
    page: int | None = None,
) -> tuple[Image.Image, tuple[str, ...]]:
    """`load_image` that returns its warnings as a second value."""
    limits = _Limits(max_pixels, apply_exif)
    notes: list[str] = []
    if isinstance(source, (bytes, bytearray, memoryview, str, os.PathLike)):
        data, name = _content(source, max_bytes)
        return _decode_file(data, name, limits, page, notes), tuple(notes)
    if page is not None:
        raise ImageError(f"page={page} of a {type(source).__name__}: only files have pages")
    if isinstance(source, Image.Image):
        name = f"PIL image ({source.mode}, {source.width}x{source.height})"
        _check_size(source, name, max_pixels)
        try:
            data = _file_of(source)
            page = source.tell() + 1
            # Opened again, because decoding would change the source for its next use.
            image = source if data is None else _open_page(data, name, limits, page)
            image = _decode(image, name, limits, notes, data, page)
        except Exception as error:
            raise decoding_error(name, error) from error
        return image, tuple(notes)
    if hasattr(source, "__array__"):
        array = np.asarray(source)
        name = f"image array ({array.dtype}{list(array.shape)})"
        if array.ndim >= 2:
            _check_sides(array.shape[1], array.shape[0], name, max_pixels)
        return array_to_rgb(array, name, notes), tuple(notes)
    raise ImageError(
        f"cannot read an image from {type(source).__name__}; expected a path, encoded bytes, a PIL "
        "image or a numpy array"
    )


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height) that `load_image` would give a file, from its header alone.

    Raises:
        ImageError: as `load_image`, but for damage behind the header.
    """
    data, name = _content(path, MAX_BYTES)
    if is_pdf(data):
        return pdf_page_size(data, name)
    image = open_encoded(data, name)
    # PIL's header of a TIFF is turned already.
    turned = image.format != "TIFF" and _orientation(image) >= 5
    width, height = image.size
    return (height, width) if turned else (width, height)


def count_pages(source: Any, *, max_bytes: int = MAX_BYTES) -> int:
    """The number of pages or frames of a file; 1 if it cannot be told or there are no pages.

    Raises:
        ImageError: more than 10,000.
    """
    try:
        data, name = _content(source, max_bytes)
        if is_pdf(data):
            pages = count_pdf_pages(data, name)
        else:
            with no_pil_limit():
                pages = getattr(open_encoded(data, name), "n_frames", 1)
    except Exception:
        # The error is raised when the first page is read.
        return 1
    _check_pages(pages, name)
    return pages


def page_id(name: str, page: int) -> str:
    """The id of one page of the image `name` in rows of results."""
    return f"{name}#page={page}"


@dataclasses.dataclass(frozen=True)
class _Limits:
    max_pixels: int
    apply_exif: bool


def _content(source: Any, max_bytes: int) -> tuple[bytes, str]:
    """The encoded image, and its name for messages."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        name = f"image bytes ({len(data)} bytes)"
    else:
        name = f"image {_shortened(os.fsdecode(source))!r}"
        data = _read_file(source, name, max_bytes)
    if not data:
        raise ImageError(f"{name} is empty; write or download it again")
    if len(data) > max_bytes:
        raise ImageError(f"{name} has more than max_bytes={max_bytes} bytes; shrink it or raise it")
    return data, name


def _shortened(name: str) -> str:
    return name if len(name) <= _SHOWN_NAME else f"{name[: _SHOWN_NAME // 2]}...{name[-100:]}"


def _read_file(source: str | os.PathLike, name: str, max_bytes: int) -> bytes:
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise ImageError(f"{name} is a URL, which is not fetched; download it and pass its bytes")
    try:
        kind = special_kind(os.stat(source).st_mode)
        if kind == "a folder":
            raise ImageError(f"{name} is a directory; pass the image files inside it")
        # Before opening: a pipe blocks until someone writes, a device may never end.
        if kind is not None:
            raise ImageError(f"{name} is {kind}, not a regular file; pass a file or its bytes")
        with open(source, "rb") as file:
            return file.read(max_bytes + 1)
    except FileNotFoundError as error:
        hint = missing_file_hint(source)
        raise ImageError(f"{name} does not exist{hint or '; check the path'}") from error
    except OSError as error:
        reason = error.strerror or error
        raise ImageError(f"{name} cannot be read ({reason}); check the path and its rights") from (
            error
        )
    except ImageError:
        raise
    except ValueError as error:
        raise ImageError(f"{name} cannot be read ({error}); check the path") from error
    except MemoryError as error:
        raise decoding_error(name, error) from error


def _decode_file(
    data: bytes, name: str, limits: _Limits, page: int | None, notes: list[str]
) -> Image.Image:
    try:
        if is_pdf(data):
            if page is None and count_pdf_pages(data, name) > 1:
                notes.append(SEVERAL_PAGES)
            return pdf_page(data, name, 1 if page is None else page, limits.max_pixels)
        image = _open_page(data, name, limits, page)
        if page is None and _has_several_pages(image, data, name):
            notes.append(SEVERAL_PAGES)
        return _decode(image, name, limits, notes, data, page)
    except Exception as error:
        smaller = without_refused_texts(data, error)
        if smaller is None:
            raise decoding_error(name, error) from error
    notes.clear()
    return _decode_file(smaller, name, limits, page, notes)


def _open_page(data: bytes, name: str, limits: _Limits, page: int | None) -> Image.Image:
    image = open_encoded(data, name)
    # Before `seek`, which decodes the frames of an animation.
    _check_size(image, name, limits.max_pixels)
    if page is None:
        return image
    pages = getattr(image, "n_frames", 1)
    _check_pages(pages, name)
    if not 1 <= page <= pages:
        raise ImageError(f"{name} has no page {page}: it has {pages}, counted from 1")
    image.seek(page - 1)
    _check_size(image, name, limits.max_pixels)
    return image


def _check_pages(pages: int, name: str) -> None:
    if pages > MAX_PAGES:
        raise ImageError(f"{name} has {pages} pages; at most {MAX_PAGES} are read: split it")


def _has_several_pages(image: Image.Image, data: bytes, name: str) -> bool:
    # A GIF is searched for a second frame, which may be damaged: not with the image in hand.
    probe = open_encoded(data, name) if image.format == "GIF" else image
    try:
        return bool(getattr(probe, "is_animated", False))
    except Exception:
        return False


def _decode(
    image: Image.Image,
    name: str,
    limits: _Limits,
    notes: list[str],
    data: bytes | None = None,
    page: int | None = None,
) -> Image.Image:
    refuse_misread(image, name)
    declared = declared_by(image, data)
    low_mode = low_byte_mode(image) if data is not None else None
    ppm_tile = image.tile[0] if data is not None and is_sixteen_bit_ppm(image) else None  # pyright: ignore[reportAttributeAccessIssue]
    lossy = data is not None and loses_low_bits(image, data)
    palette = eight_bit_palette(image)
    _load(image)
    if palette is not None:
        image.putpalette(palette)
    # The size of some formats is known only now.
    _check_size(image, name, limits.max_pixels)
    deep = low_mode is not None or ppm_tile is not None or lossy
    if data is None or not deep or not is_dark(image):
        rgb = image_to_rgb(image, name, notes, declared)
    elif lossy:
        notes.append(LOW_BITS_LOST)
        rgb = image_to_rgb(image, name, notes, declared)
    elif low_mode is None:
        samples = ppm_samples(data, ppm_tile, image.size)
        rgb = deep_color_to_rgb(samples, name, notes, declared)
    else:
        low = _open_page(data, name, limits, page)
        low.tile = [_with_raw_mode(tile, low_mode) for tile in low.tile]  # pyright: ignore[reportAttributeAccessIssue]
        _load(low)
        samples = joined_bytes(image, low, low_mode)
        rgb = deep_color_to_rgb(samples, name, notes, declared)
    turn = _UPRIGHT.get(_orientation(image)) if limits.apply_exif else None
    if turn is not None:
        rgb = rgb.transpose(turn)
    # The orientation also lives in `info`: left there, a second load_image would turn it again.
    rgb.info = {}
    return rgb


def _file_of(image: Image.Image) -> bytes | None:
    """The file of a PIL image that is not decoded yet; None for any other.

    Only where decoding loses something: 16-bit colour, and what the file says of its samples.
    """
    file = getattr(image, "fp", None)
    formats = ("PNG", "TIFF", "PPM", "JPEG2000")
    if file is None or not getattr(image, "tile", None) or image.format not in formats:
        return None
    try:
        place = file.tell()
        file.seek(0)
        data = file.read(MAX_BYTES)
        file.seek(place)
    except (OSError, ValueError):
        return None
    return data


def _load(image: Image.Image) -> None:
    limit = pil_limit()
    beyond = limit is not None and image.width * image.height > limit
    with no_pil_limit() if beyond else nullcontext():
        image.load()


def _with_raw_mode(tile: Any, raw_mode: str) -> Any:
    arguments = tile[3]
    if isinstance(arguments, tuple):
        return tile._replace(args=(raw_mode, *arguments[1:]))
    return tile._replace(args=raw_mode)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        # Damaged EXIF is common in photos that are otherwise sound; viewers show them unturned.
        return 1


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    _check_sides(image.width, image.height, name, max_pixels)


def _check_sides(width: int, height: int, name: str, max_pixels: int) -> None:
    if max(width, height) > MAX_SIDE:
        raise ImageError(
            f"{name} is {width}x{height}: a side of more than {MAX_SIDE} pixels is not resized; "
            "cut the image into pieces"
        )
    if width * height > max_pixels:
        raise ImageError(
            f"{name} is {width}x{height} = {width * height} pixels, more than "
            f"max_pixels={max_pixels}; shrink it, or raise max_pixels if you trust it"
        )
    if width < 1 or height < 1:
        raise ImageError(f"{name} is {width}x{height}: it holds no pixels")
