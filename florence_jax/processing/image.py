"""Any image source -> a decoded RGB picture in the frame the user sees, or a clear `ImageError`."""

from __future__ import annotations

import io
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from PIL import Image

from florence_jax.processing.color import array_to_rgb, image_to_rgb
from florence_jax.processing.errors import ImageError
from florence_jax.runtime.missing_file import missing_file_hint

MAX_PIXELS = 100_000_000
MAX_BYTES = 256 * 1024 * 1024

# Raster formats only. Left out on purpose: EPS (PIL runs Ghostscript on it) and container formats
# such as ICO and ICNS, whose inner image may be larger than the size in the header that we check.
# AVIF and HEIF are read where this PIL has them.
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")

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
) -> Image.Image:
    """One picture as a new RGB `PIL.Image.Image`; the source is left as it was.

    Args:
      source: a path (str or PathLike), encoded bytes, a PIL image of any mode, or an array uint8,
        uint16 or float, [H, W] or [H, W, 1 | 3 | 4] (see `color`). The format is read from the
        content, never from the file name. Of an animation, the first frame.
      max_pixels: refuse a picture with more, judged by its header before anything is decoded.
      max_bytes: refuse a file or bytes with more.
      apply_exif: turn the picture upright by its EXIF orientation, as viewers and browsers do, for
        files, bytes and PIL images alike: boxes then refer to the picture as the user sees it, and
        `image.size` of the result is the ``image_size`` to parse with. False keeps the stored
        frame (except of TIFF, which PIL itself turns).

    Raises:
      ImageError: missing, empty, truncated, damaged, too large, or not an image.
    """
    if isinstance(source, Image.Image):
        name = f"PIL image ({source.mode}, {source.width}x{source.height})"
        return _decode(source, name, max_pixels, apply_exif)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        return _open(data, f"image bytes ({len(data)} bytes)", max_pixels, max_bytes, apply_exif)
    if isinstance(source, (str, os.PathLike)):
        name = f"image {os.fsdecode(source)!r}"
        data = _read_file(source, name, max_bytes)
        return _open(data, name, max_pixels, max_bytes, apply_exif)
    if hasattr(source, "__array__"):
        array = np.asarray(source)
        name = f"image array ({array.dtype}{list(array.shape)})"
        if array.ndim >= 2:
            _check_pixels(array.shape[1], array.shape[0], name, max_pixels)
        return array_to_rgb(array, name)
    raise ImageError(
        f"cannot read an image from {type(source).__name__}; expected a path, encoded bytes, a PIL "
        "image or a numpy array"
    )


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height) that `load_image` would give a file, from its header alone.

    Raises:
      ImageError: as `load_image`, but for damage behind the header.
    """
    name = f"image {os.fsdecode(path)!r}"
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError(f"{name} is not a regular file; pass a file")
        Image.init()
        known = [one for one in FORMATS if one in Image.OPEN]
        with _no_pil_limit(), Image.open(path, formats=known) as image:
            width, height = image.size
            # PIL's header of a TIFF is turned already.
            turned = image.format != "TIFF" and _orientation(image) >= 5
    except ImageError:
        raise
    except Exception as error:
        raise _damaged(name, error) from error
    return (height, width) if turned else (width, height)


def _read_file(source: str | os.PathLike, name: str, max_bytes: int) -> bytes:
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise ImageError(f"{name} is a URL, which is not fetched; download it and pass its bytes")
    try:
        # Before opening: a pipe blocks until someone writes, a device may never end.
        kind = os.stat(source).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise ImageError(f"{name} is not a regular file; pass a file or its bytes")
        with open(source, "rb") as file:
            return file.read(max_bytes + 1)
    except FileNotFoundError as error:
        hint = missing_file_hint(source)
        raise ImageError(f"{name} does not exist{hint or '; check the path'}") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name} is a directory; pass the image files inside it") from error
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(
            f"{name} cannot be read ({error}); check the path and its rights"
        ) from error


def _open(data: bytes, name: str, max_pixels: int, max_bytes: int, apply_exif: bool) -> Image.Image:
    if not data:
        raise ImageError(f"{name} is empty; write or download it again")
    if len(data) > max_bytes:
        raise ImageError(f"{name} has more than max_bytes={max_bytes} bytes; shrink it or raise it")
    Image.init()
    known = tuple(name for name in FORMATS if name in Image.OPEN)
    try:
        with _no_pil_limit():
            image = Image.open(io.BytesIO(data), formats=known)
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image in a supported format ({', '.join(known)}); "
            "convert it to PNG or JPEG"
        ) from error
    except Exception as error:
        raise _damaged(name, error) from error
    return _decode(image, name, max_pixels, apply_exif)


def _decode(image: Image.Image, name: str, max_pixels: int, apply_exif: bool) -> Image.Image:
    _check_pixels(image.width, image.height, name, max_pixels)
    with _pil_limit_lock:
        pil_limit = Image.MAX_IMAGE_PIXELS
    beyond = pil_limit is not None and image.width * image.height > pil_limit
    try:
        with _no_pil_limit() if beyond else nullcontext():
            image.load()
        rgb = image_to_rgb(image, name)
        turn = _UPRIGHT.get(_orientation(image)) if apply_exif else None
        if turn is not None:
            rgb = rgb.transpose(turn)
    except ImageError:
        raise
    except Exception as error:
        # PIL's decoders raise almost anything on a damaged file: OSError, SyntaxError, ValueError,
        # struct.error, zlib.error, EOFError, IndexError, MemoryError.
        raise _damaged(name, error) from error
    # The orientation also lives in `info`: left there, a second load_image would turn it again.
    rgb.info = {}
    return rgb


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        # Damaged EXIF is common in photos that are otherwise sound; viewers show them unturned.
        return 1


def _check_pixels(width: int, height: int, name: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"{name} is {width}x{height} = {width * height} pixels, more than "
            f"max_pixels={max_pixels}; shrink it, or raise max_pixels if you trust it"
        )
    if width < 1 or height < 1:
        raise ImageError(f"{name} is {width}x{height}: it holds no pixels")


def _damaged(name: str, error: Exception) -> ImageError:
    return ImageError(
        f"{name} is truncated or damaged ({type(error).__name__}: {error}); "
        "write or download it again"
    )


_pil_limit_lock = threading.RLock()


@contextmanager
def _no_pil_limit() -> Iterator[None]:
    """PIL's own decompression-bomb limit lifted, because ours decides.

    PIL's limit is a module global that warns, or raises at twice the value, whatever our cap says.
    It is lifted only while a header is read (and while decoding a picture that our cap allows
    beyond PIL's limit), so threads decode ordinary pictures side by side.
    """
    with _pil_limit_lock:
        saved = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = saved
