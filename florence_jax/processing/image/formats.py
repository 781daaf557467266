"""Opening encoded images: the formats that are read, and the errors for those that are not."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

from florence_jax.processing.image import ImageError

# Raster formats only. Left out on purpose: EPS (PIL runs Ghostscript on it) and container formats
# such as ICO and ICNS, whose inner image may be larger than the size in the header that we check.
# AVIF and HEIF are read where this PIL has them. DIB comes last: it has hardly a signature.
FORMATS = (
    *("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF"),
    "DIB",
)

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Texts and the colour profile, which nothing here uses.
_UNUSED_PNG_CHUNKS = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Brands of ISO media files, by the format of the images inside.
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
)


def open_encoded(data: bytes, name: str) -> Image.Image:
    """The image that `data` holds, its pixels not decoded yet.

    Raises:
        ImageError: no supported format, or a damaged header.
    """
    Image.init()
    _prepare_iso_media(data, name)
    known = tuple(name for name in FORMATS if name in Image.OPEN)
    try:
        with no_pil_limit():
            return Image.open(io.BytesIO(data), formats=known)
    except Image.UnidentifiedImageError as error:
        if data[:4] in _TIFF:
            raise ImageError(
                f"{name} is a TIFF that is damaged, or whose samples are of a kind that is not "
                "read (float16, float64, float or 32-bit colour): save it as 8-bit or 16-bit "
                "integers, or one channel of float32"
            ) from error
        raise ImageError(
            f"{name} is not an image in a supported format ({', '.join(known)}); "
            "convert it to PNG or JPEG"
        ) from error
    except Exception as error:
        smaller = without_refused_texts(data, error)
        if smaller is None:
            raise decoding_error(name, error) from error
    return open_encoded(smaller, name)


def without_refused_texts(data: bytes, error: Exception) -> bytes | None:
    """A PNG without texts and colour profile, where `error` says that PIL found them too large.

    They may be large in a sound file, or unpack without end; nothing here needs them.
    """
    if _is_png(data) and isinstance(error, ValueError) and "MAX_TEXT" in str(error):
        smaller = _without_texts_and_profile(data)
        return smaller if len(smaller) < len(data) else None
    return None


def decoder_arguments(image: Image.Image) -> Any:
    """The arguments of Pillow's decoder for an image that is not decoded yet, else None."""
    return next((tile[3] for tile in getattr(image, "tile", ())), None)


def refuse_misread(image: Image.Image, name: str) -> None:
    """Refuse a file that PIL decodes to something else, without an error.

    Raises:
        ImageError: a TIFF whose 16-bit channels are in planes: PIL reads their bytes as pixels.
    """
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    depths = tags.get(258, (1,))
    if tags.get(284) == 2 and isinstance(depths, tuple) and len(depths) > 1 and max(depths) > 8:
        raise ImageError(
            f"{name} is a TIFF of 16-bit planes (PlanarConfiguration 2), which is not supported; "
            "save it with its channels interleaved"
        )


def decoding_error(name: str, error: Exception) -> ImageError:
    """Describe an exception of PIL's: nearly every type may mean a damaged file."""
    if isinstance(error, ImageError):
        return error
    if isinstance(error, MemoryError):
        return ImageError(
            f"{name} needs more memory than there is to be decoded; shrink it, or read fewer "
            "images at a time"
        )
    if isinstance(error, Image.DecompressionBombError):
        return ImageError(f"{name} holds a larger image than its header says: {error}")
    return ImageError(
        f"{name} is truncated or damaged ({type(error).__name__}: {error}); "
        "write or download it again"
    )


def significant_bits(data: bytes) -> int | None:
    """The number of significant bits of a sample, from a PNG's sBIT chunk; None without one."""
    for kind, start, end in _png_chunks(data):
        if kind == b"IDAT":
            return None
        if kind == b"sBIT" and end > start:
            # One byte a channel; the widest colour channel decides.
            bits = max(data[start : min(end, start + 3)])
            return bits if 8 <= bits <= 16 else None
    return None


def _is_png(data: bytes) -> bool:
    """Whether the content begins as a PNG file."""
    return data.startswith(_PNG_SIGNATURE)


def _without_texts_and_profile(data: bytes) -> bytes:
    """Remove a PNG's texts and colour profile, which may unpack to any size."""
    kept = [_PNG_SIGNATURE]
    position = len(_PNG_SIGNATURE)
    for kind, _, end in _png_chunks(data):
        if kind not in _UNUSED_PNG_CHUNKS:
            kept.append(data[position : end + 4])
        position = end + 4
    kept.append(data[position:])
    return b"".join(kept)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of the content of each chunk that is whole."""
    position = len(_PNG_SIGNATURE)
    while _is_png(data) and position + 12 <= len(data):
        start = position + 8
        end = start + int.from_bytes(data[position : position + 4], "big")
        if end + 4 > len(data):
            return
        yield data[position + 4 : start], start, end
        position = end + 4


def _prepare_iso_media(data: bytes, name: str) -> None:
    """Register pillow-heif for HEIC files, in whichever process reads one.

    Raises:
        ImageError: the package is not installed, or this PIL reads no AVIF.
    """
    if data[4:8] != b"ftyp":
        return
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, size, 4))}
    if brands & _AVIF_BRANDS:
        kind = needed = "AVIF"
    elif brands & _HEIF_BRANDS:
        kind, needed = "HEIC", "HEIF"
    else:
        return
    if needed not in Image.OPEN and needed == "HEIF":
        try:
            import pillow_heif  # pyright: ignore[reportMissingImports]
        except ImportError:
            pass
        else:
            pillow_heif.register_heif_opener()
    if needed not in Image.OPEN:
        raise ImageError(
            f"{name} is {kind}, which needs a package that is not installed: "
            'pip install "florence-jax[heif]"'
        )


_pil_limit_lock = threading.RLock()


def pil_limit() -> int | None:
    """PIL's own decompression-bomb limit, also while another thread has lifted it."""
    with _pil_limit_lock:
        return Image.MAX_IMAGE_PIXELS


@contextmanager
def no_pil_limit() -> Iterator[None]:
    """Lift PIL's own decompression-bomb limit, because ours decides.

    PIL's limit is a module global that warns, or raises at twice the value, whatever our cap says.
    It is lifted only while a header is read (and while decoding an image that our cap allows
    beyond PIL's limit), so threads decode ordinary images side by side.
    """
    with _pil_limit_lock:
        saved = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = saved
