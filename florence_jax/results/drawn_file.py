"""Save a drawn result as a PNG file, atomically."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from PIL import Image

from florence_jax.results.draw import draw_result
from florence_jax.runtime.atomic_file import atomic_open
from florence_jax.runtime.error_text import is_of_one_input, row_error_text


def drawing_error(
    image: Image.Image, result: Mapping[str, Any], path: str | os.PathLike[str]
) -> str | None:
    """Draw one result on its image into `path`; returns the error, or None.

    The answer is worth keeping whatever becomes of its drawing, a full disk included.
    """
    try:
        save_drawn(image, result, path)
    except Exception as error:
        if not is_of_one_input(error):
            raise
        return row_error_text(error)
    return None


def save_drawn(image: Image.Image, result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw one result on its image into `path`.

    Raises:
        OSError: it cannot be written; the error names `path`.
        ValueError: a result of no known form.
    """
    drawn = draw_result(image, result)
    with atomic_open(path, "wb", durable=False) as file:
        drawn.save(file, format="png")
