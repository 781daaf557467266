"""Pages of a PDF as images, rendered by pdfium; needs the extra `pdf`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

from florence_jax.processing.image import ImageError

_SIGNATURE = b"%PDF-"
# Points are 1/72 inch: an A4 page becomes 1190 x 1684 pixels, more than the model looks at.
_PIXELS_PER_POINT = 2.0
# pdfium is not thread-safe.
_LOCK = threading.Lock()


def is_pdf(data: bytes) -> bool:
    """Whether a file is a PDF."""
    return data[: len(_SIGNATURE)] == _SIGNATURE


def count_pdf_pages(data: bytes, name: str) -> int:
    """The number of pages.

    Raises:
        ImageError: it cannot be read.
    """
    with _opened(data, name) as document:
        return len(document)


def pdf_page_size(data: bytes, name: str, page: int = 1) -> tuple[int, int]:
    """(width, height) in pixels of the image of a page, counted from 1.

    Raises:
        ImageError: it cannot be read, or has no such page.
    """
    with _opened(data, name) as document:
        return _size(_page(document, name, page))


def pdf_page(data: bytes, name: str, page: int, max_pixels: int) -> Image.Image:
    """A page, counted from 1, as an RGB image of 144 pixels an inch on white.

    Raises:
        ImageError: it cannot be read, has no such page, or would have more than `max_pixels`.
    """
    with _opened(data, name) as document:
        found = _page(document, name, page)
        width, height = _size(found)
        if width * height > max_pixels:
            raise ImageError(
                f"page {page} of {name} is {width}x{height} = {width * height} pixels, more than "
                f"max_pixels={max_pixels}; cut the page into pieces, or raise max_pixels"
            )
        return found.render(scale=_PIXELS_PER_POINT).to_pil().convert("RGB")


@contextmanager
def _opened(data: bytes, name: str) -> Iterator[Any]:
    try:
        import pypdfium2  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImageError(
            f'{name} is a PDF, which needs pypdfium2: pip install "florence-jax[pdf]"'
        ) from None
    with _LOCK:
        try:
            document = pypdfium2.PdfDocument(data)
        except pypdfium2.PdfiumError as error:
            raise ImageError(f"{name} is a PDF that is damaged or locked ({error})") from error
        try:
            yield document
        except pypdfium2.PdfiumError as error:
            raise ImageError(f"{name} is a PDF with a damaged page ({error})") from error
        finally:
            document.close()


def _page(document: Any, name: str, page: int) -> Any:
    if not 1 <= page <= len(document):
        raise ImageError(f"{name} has no page {page}: it has {len(document)}, counted from 1")
    return document[page - 1]


def _size(page: Any) -> tuple[int, int]:
    width, height = page.get_size()
    return max(1, round(width * _PIXELS_PER_POINT)), max(1, round(height * _PIXELS_PER_POINT))
