"""16-bit colour images: the low bytes of samples, which Pillow drops.

That is right for samples that fill 16 bits. Of 12-bit samples it leaves 0..15, which is black: then
the image is decoded a second time for the low bytes.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np
from PIL import Image

from florence_jax.processing.image.color import array_to_rgb, scaled_to_eight
from florence_jax.processing.image.formats import decoder_arguments
from florence_jax.processing.image.sample_range import Declared, integer_range, jpeg2000_depth

LOW_BITS_LOST = (
    "a 16-bit colour image has no value above 14 bits, and of its format only the high bytes are "
    "read: it comes out nearly black. Save it as PNG or TIFF (RGB), or scale it to the full range"
)

# High bytes of 14-bit samples and below, rounded up as in PPM.
_LOW_HIGH_BYTE = 64
_OTHER_ORDER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


def low_byte_mode(image: Image.Image) -> str | None:
    """Return Pillow's raw mode that decodes the low bytes; None if the image has none.

    Args:
        image: opened from a file, its pixels not decoded yet.
    """
    raw = _raw_mode(image)
    if not isinstance(raw, str) or image.mode not in ("RGB", "RGBA"):
        return None
    if raw == "LA;16B":
        return "RGBA"  # the same 32 bits a pixel: grey's two bytes, then alpha's
    kind, _, order = raw.partition(";16")
    if kind not in ("RGB", "RGBA", "RGBX") or order not in _OTHER_ORDER:
        return None
    return f"{kind};16{_OTHER_ORDER[order]}"


def _raw_mode(image: Image.Image) -> Any:
    arguments = decoder_arguments(image)
    return arguments[0] if isinstance(arguments, tuple) else arguments


def is_dark(image: Image.Image) -> bool:
    """Whether all samples of the decoded image may have 14 bits or fewer."""
    colors = max(1, len(image.getbands()) - 1) if image.has_transparency_data else 3
    extrema = image.getextrema()[:colors]
    return max(high for _, high in extrema) <= _LOW_HIGH_BYTE  # pyright: ignore[reportGeneralTypeIssues]


def is_sixteen_bit_ppm(image: Image.Image) -> bool:
    """Whether this is an undecoded PPM whose maximum is 65535, which Pillow scales to 8 bits."""
    return image.format == "PPM" and decoder_arguments(image) == ("RGB", 65535)


def ppm_samples(data: bytes, tile: Any, size: tuple[int, int]) -> np.ndarray:
    """uint16[H, W, 3] of a PPM file whose maximum is 65535.

    Args:
        data: the file.
        tile: the image's only one, before it was decoded.
        size: (width, height).
    """
    width, height = size
    decoder, _, offset, *_ = tile
    count = width * height * 3
    if decoder == "ppm_plain":
        text = re.sub(rb"#[^\r\n]*", b"", data[offset:])
        values = np.fromstring(text.decode("ascii"), np.uint16, count, sep=" ")
    else:
        values = np.frombuffer(data, ">u2", count, offset)
    return values.reshape(height, width, 3)


def eight_bit_palette(image: Image.Image) -> bytes | None:
    """The colours of a TIFF palette that holds 8-bit values in place of 16-bit ones, else None.

    Some writers leave them so; Pillow keeps the high bytes, which are all 0. libtiff has the rule.
    """
    if image.format != "TIFF" or image.mode != "P":
        return None
    colors = getattr(image, "tag_v2", {}).get(320, ())
    if not colors or max(colors) > 255 or len(colors) % 3:
        return None
    return np.array(colors, np.uint8).reshape(3, -1).T.tobytes()


def loses_low_bits(image: Image.Image, data: bytes) -> bool:
    """Whether the low bytes of this 16-bit colour image cannot be read.

    Args:
        image: opened from a file, its pixels not decoded yet.
        data: the file.
    """
    if image.format == "JPEG2000":
        return image.mode != "I;16" and jpeg2000_depth(data) == 16
    raw = _raw_mode(image)
    return isinstance(raw, str) and raw.startswith(("CMYK;16", "RGBa;16"))


def joined_bytes(high: Image.Image, low: Image.Image, low_mode: str) -> np.ndarray:
    """uint16[H, W, 3 | 4] of 16-bit colour.

    Args:
        high: the image as Pillow decodes it.
        low: the image decoded with the raw mode `low_mode`.
        low_mode: of `low_byte_mode`.
    """
    low_bytes = np.asarray(low).astype(np.uint16)
    if low_mode == "RGBA":
        grey = low_bytes[..., 0] << 8 | low_bytes[..., 1]
        alpha = low_bytes[..., 2] << 8 | low_bytes[..., 3]
        return np.stack([grey, grey, grey, alpha], axis=-1)
    return np.asarray(high).astype(np.uint16) << 8 | low_bytes


def deep_color_to_rgb(
    samples: np.ndarray, name: str, notes: list[str], declared: Declared
) -> Image.Image:
    """RGB of 16-bit colour, scaled as 16-bit grey is.

    Args:
        samples: uint16[H, W, 3 | 4].
        name: the image, for errors.
        notes: assumptions are added here.
        declared: what the image's file says about its samples.
    """
    colors = integer_range(samples[..., :3], declared, "16-bit")
    eight = [scaled_to_eight(samples[..., :3], colors)]
    if colors.note is not None and colors.note not in notes:
        notes.append(colors.note)
    if samples.shape[-1] == 4:
        alphas = integer_range(samples[..., 3:], declared, "16-bit")
        eight.append(scaled_to_eight(samples[..., 3:], alphas))
    return array_to_rgb(np.concatenate(eight, axis=-1), name, notes)
