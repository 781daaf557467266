"""HEIC by pillow-heif and AVIF by Pillow, upright, in worker processes too."""

import sys

import numpy as np
import pytest
from PIL import Image

from florence_jax.batch.image_reader import resized_pixels
from florence_jax.batch.reader_pool import WorkerPool
from florence_jax.processing import ImageError, load_image
from florence_jax.processing.image.load import count_pages, load_image_and_notes
from tests.processing.test_image import encoded


def picture():
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (64, 32), "red")
    image.paste("blue", (32, 0, 64, 32))
    return image


def is_red(pixel):
    return pixel[0] > 200 and pixel[2] < 60


@pytest.fixture
def heic(tmp_path):
    """(orientation) -> the path of a HEIC file, written in another process: none is registered."""
    pillow_heif = pytest.importorskip("pillow_heif")

    def write(image, name="a.heic", **options):
        file = pillow_heif.from_pillow(image)
        file.save(tmp_path / name, quality=100, **options)
        return tmp_path / name

    return write


@pytest.fixture
def not_registered(monkeypatch):
    """As in a fresh process."""
    Image.init()
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)


def test_heic(heic, not_registered):
    image = load_image(heic(picture()))
    assert image.size == (64, 32)
    assert is_red(image.getpixel((5, 5)))
    assert not is_red(image.getpixel((60, 5)))


def test_heic_in_a_worker_process(heic):
    pool = WorkerPool(1)
    try:
        size, pixels, _ = pool.submit(resized_pixels, str(heic(picture())), (16, 16), 3).result()
    finally:
        pool.close()
    assert size == (64, 32)
    assert is_red(pixels[2, 2])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["HEIF", "AVIF"])
def test_the_orientation_is_applied_once(heic, orientation, format, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = load_image(encoded(picture(), "PNG", exif=exif))
    if format == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    path = tmp_path / "turned"
    picture().save(path, format, exif=exif.tobytes(), quality=100)
    image = load_image(path)
    assert image.size == upright.size
    difference = np.asarray(image).astype(int) - np.asarray(upright).astype(int)
    assert np.abs(difference).mean() < 8
    with Image.open(path) as opened:
        assert load_image(opened).size == upright.size


def test_the_main_image_of_several(heic, tmp_path):
    import pillow_heif

    file = pillow_heif.from_pillow(Image.new("RGB", (64, 64), "green"))
    file.add_from_pillow(picture())
    file.save(tmp_path / "two.heic", primary_index=1, quality=100)
    image, notes = load_image_and_notes(tmp_path / "two.heic")
    assert image.size == (64, 32)
    assert "several pages" in notes[0]
    assert count_pages(tmp_path / "two.heic") == 2
    assert load_image(tmp_path / "two.heic", page=1).size == (64, 64)


def test_the_extra_is_named(heic, not_registered, monkeypatch):
    data = heic(picture()).read_bytes()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r'HEIC, .*pip install "florence-jax\[heif\]"'):
        load_image(data)
    avif = encoded(picture(), "AVIF")
    monkeypatch.delitem(Image.OPEN, "AVIF")
    with pytest.raises(ImageError, match=r'AVIF, .*pip install "florence-jax\[heif\]"'):
        load_image(avif)


def test_a_damaged_heic_is_an_image_error(heic):
    data = heic(picture()).read_bytes()
    for end in (12, 40, len(data) // 2, len(data) - 40):
        with pytest.raises(ImageError):
            load_image(data[:end])
