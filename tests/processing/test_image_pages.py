"""Pages and frames: the first is read and the others are mentioned, or each by its number."""

import numpy as np
import pytest
from PIL import Image

from florence_jax.processing import ImageError, load_image
from florence_jax.processing.image import ImageWarning
from florence_jax.processing.image.load import SEVERAL_PAGES, count_pages, load_image_and_notes
from tests.processing.test_image import encoded
from tests.shared_data import needs_shared, shared_path

COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def pages(format, mode="RGB", **options):
    first, *others = (Image.new("RGB", (16, 8), color).convert(mode) for color in COLORS)
    return encoded(first, format, save_all=True, append_images=others, **options)


FORMATS = {
    "TIFF": {},
    "GIF": {},
    "PNG": {},
    "WEBP": {"lossless": True},
    "MPO": {"quality": 100, "subsampling": 0},
    "AVIF": {"quality": 100},
}


@pytest.mark.parametrize("format", FORMATS)
def test_every_page_by_its_number(format):
    data = pages(format, **FORMATS[format])
    assert count_pages(data) == 3
    with pytest.warns(ImageWarning, match="several pages or frames, and the first is read"):
        first = load_image(data)
    assert np.array_equal(np.asarray(first), np.asarray(load_image(data, page=1)))
    for number, color in enumerate(COLORS, start=1):
        image, notes = load_image_and_notes(data, page=number)
        assert image.getpixel((3, 3)) == pytest.approx(color, abs=4)
        assert not notes
    for number in (0, -1, 4):
        with pytest.raises(ImageError, match=rf"no page {number}: it has 3, counted from 1"):
            load_image(data, page=number)


def test_one_page():
    for format in ("PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP"):
        data = encoded(Image.new("RGB", (4, 4), "red"), format)
        assert count_pages(data) == 1
        assert load_image(data, page=1).size == (4, 4)


def test_pages_may_differ_in_size_mode_and_range():
    grey = Image.fromarray(np.full((4, 5), 2048, np.uint16))
    other = Image.new("L", (20_000, 5_001))
    data = encoded(Image.new("RGB", (3, 2)), "TIFF", save_all=True, append_images=[grey, other])
    image, notes = load_image_and_notes(data, page=2)
    assert image.size == (5, 4)
    assert image.getpixel((0, 0)) == (128, 128, 128)
    assert "12-bit" in notes[0]
    with pytest.raises(ImageError, match=r"20000x5001.*max_pixels"):
        load_image(data, page=3)


def test_a_damaged_second_frame_is_no_fault_of_the_first():
    data = pages("GIF")
    for end in range(len(data) - 1, len(data) // 2, -7):
        image, _ = load_image_and_notes(data[:end])
        assert image.getpixel((0, 0)) == (255, 0, 0)


def test_pages_of_what_has_none():
    for source in (Image.new("RGB", (2, 2)), np.zeros((2, 2), np.uint8)):
        with pytest.raises(ImageError, match="only files have pages"):
            load_image(source, page=1)
    assert count_pages("nowhere.tif") == 1
    assert count_pages(b"no image") == 1


@needs_shared
def test_the_two_pages_of_the_field():
    path = shared_path("..", "field", "two_pages.tif")
    assert count_pages(path) == 2
    first, notes = load_image_and_notes(path)
    assert notes == (SEVERAL_PAGES,)
    assert np.array_equal(np.asarray(first), np.asarray(load_image(path, page=1)))
    assert not np.array_equal(np.asarray(first), np.asarray(load_image(path, page=2)))
