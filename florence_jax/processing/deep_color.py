"""16-bit colour images, of whose samples Pillow keeps the high byte alone.

That is right for samples that fill 16 bits. Of 12-bit samples it leaves 0..15, which is black: then
the image is decoded a second time for the low bytes.
"""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image

from florence_jax.processing.color import array_to_rgb, scaled_to_eight
from florence_jax.processing.sample_range import Declared, integer_range

# High bytes of 14-bit samples and below.
_LOW_HIGH_BYTE = 63
_OTHER_ORDER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


def low_byte_mode(image: Image.Image) -> str | None:
    """Pillow's raw mode that decodes the low bytes; None where the image has none.

    Args:
      image: opened from a file, its pixels not decoded yet.
    """
    arguments = next((tile[3] for tile in getattr(image, "tile", ())), None)
    raw = arguments[0] if isinstance(arguments, tuple) else arguments
    if not isinstance(raw, str) or image.mode not in ("RGB", "RGBA"):
        return None
    if raw == "LA;16B":
        return "RGBA"  # the same 32 bits a pixel: grey's two bytes, then alpha's
    kind, _, order = raw.partition(";16")
    if kind not in ("RGB", "RGBA", "RGBX") or order not in _OTHER_ORDER:
        return None
    return f"{kind};16{_OTHER_ORDER[order]}"


def is_dark(image: Image.Image) -> bool:
    """May the decoded image hold samples of 14 bits or fewer?"""
    extrema = image.getextrema()[:3]
    return max(high for _, high in extrema) <= _LOW_HIGH_BYTE  # pyright: ignore[reportGeneralTypeIssues]


def deep_color_to_rgb(
    high: Image.Image,
    low: Image.Image,
    low_mode: str,
    name: str,
    notes: list[str],
    declared: Declared,
) -> Image.Image:
    """RGB of 16-bit colour, scaled as 16-bit grey is.

    Args:
      high: the image as Pillow decodes it.
      low: the image decoded with the raw mode `low_mode`.
      low_mode: of `low_byte_mode`.
      name: the image, for errors.
      notes: assumptions are added here.
      declared: what the image's file says about its samples.
    """
    low_bytes = np.asarray(low).astype(np.uint16)
    if low_mode == "RGBA":
        grey = low_bytes[..., 0] << 8 | low_bytes[..., 1]
        alpha = low_bytes[..., 2] << 8 | low_bytes[..., 3]
        samples = np.stack([grey, grey, grey, alpha], axis=-1)
    else:
        samples = np.asarray(high).astype(np.uint16) << 8 | low_bytes
    colors = integer_range(samples[..., :3], declared, "16-bit")
    eight = [scaled_to_eight(samples[..., :3], colors)]
    if colors.note is not None and colors.note not in notes:
        notes.append(colors.note)
    if samples.shape[-1] == 4:
        alphas = integer_range(samples[..., 3:], declared, "16-bit")
        eight.append(scaled_to_eight(samples[..., 3:], alphas))
    return array_to_rgb(np.concatenate(eight, axis=-1), name, notes)
