"""Pages of a PDF are images: the right one, upright, in colour."""

import io

import numpy as np
import pytest
from PIL import Image

from florence_jax.processing import ImageError, load_image
from florence_jax.processing.image import ImageWarning
from florence_jax.processing.image.load import count_pages, image_size

pytest.importorskip("pypdfium2", reason='needs `pip install "florence-jax[pdf]"`')

RED, BLUE = (200, 30, 20), (10, 40, 220)


def document(*colours, size=(90, 60)):
    pages = [Image.new("RGB", size, colour) for colour in colours]
    file = io.BytesIO()
    pages[0].save(file, "pdf", save_all=True, append_images=pages[1:], quality=100)
    return file.getvalue()


def colour_of(image):
    return np.asarray(image).reshape(-1, 3).mean(axis=0)


def test_each_page_is_an_image(tmp_path):
    data = document(RED, BLUE)
    assert count_pages(data) == 2
    for page, colour in ((1, RED), (2, BLUE)):
        image = load_image(data, page=page)
        assert (image.mode, image.size) == ("RGB", (180, 120))
        np.testing.assert_allclose(colour_of(image), colour, atol=3)
    with pytest.warns(ImageWarning, match="several pages"):
        assert load_image(data).size == (180, 120)
    (tmp_path / "two.pdf").write_bytes(data)
    assert image_size(tmp_path / "two.pdf") == (180, 120)


def test_the_top_is_up():
    picture = Image.new("RGB", (60, 90), RED)
    picture.paste(BLUE, (0, 0, 60, 30))
    file = io.BytesIO()
    picture.save(file, "pdf", quality=100)
    found = np.asarray(load_image(file.getvalue()))
    np.testing.assert_allclose(found[30, 60], BLUE, atol=12)
    np.testing.assert_allclose(found[150, 60], RED, atol=12)


def test_what_is_no_page():
    with pytest.raises(ImageError, match="has no page 3: it has 2"):
        load_image(document(RED, BLUE), page=3)
    with pytest.raises(ImageError, match="more than max_pixels=100"):
        load_image(document(RED), max_pixels=100)
    with pytest.raises(ImageError, match="damaged or locked"):
        load_image(b"%PDF-1.7 nothing")
    with pytest.raises(ImageError, match="has no page 0"):
        load_image(document(RED), page=0)
