"""`load_image`: every source and mode becomes RGB in the frame the user sees, or a clear error."""

import contextlib
import io
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from florence_jax.processing import ImageError, load_image
from florence_jax.processing.image import ImageWarning
from florence_jax.processing.image.load import SEVERAL_PAGES
from tests.shared_data import needs_shared, shared_path

SOUND = sorted(
    path.name
    for path in (shared_path("images").iterdir() if shared_path("images").is_dir() else ())
    if not path.name.startswith("truncated")
)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def shared_image(name):
    return shared_path("images", name)


@pytest.mark.filterwarnings("ignore:an image has several pages")
@needs_shared
@pytest.mark.parametrize("name", SOUND)
def test_every_source_gives_the_same_rgb_picture(name):
    path = shared_image(name)
    from_path = load_image(path)
    assert from_path.mode == "RGB"
    with Image.open(path) as opened:
        stored = opened.size
        from_pil = load_image(opened)
    for other in (load_image(str(path)), load_image(path.read_bytes()), from_pil):
        assert np.array_equal(np.asarray(other), np.asarray(from_path))
    turned = name.startswith("exif") and "6" in name
    assert from_path.size == (stored[::-1] if turned else stored)


@needs_shared
@pytest.mark.parametrize("name", [name for name in SOUND if name.startswith("exif")])
def test_exif_orientation_is_applied_once_and_only_when_wanted(name):
    path = shared_image(name)
    with Image.open(path) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGB")
        stored = opened.convert("RGB")
    once = load_image(path)
    assert np.array_equal(np.asarray(once), np.asarray(upright))
    assert np.array_equal(np.asarray(load_image(once)), np.asarray(upright))
    assert np.array_equal(np.asarray(load_image(path, apply_exif=False)), np.asarray(stored))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    data = encoded(Image.fromarray(pixels), exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(load_image(data)), np.asarray(expected))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"junk"])
def test_damaged_exif_leaves_the_picture_unturned(exif):
    data = encoded(Image.new("RGB", (4, 2), "red"), "JPEG", exif=exif)
    assert load_image(data).size == (4, 2)


def test_transparency_is_composited_over_white():
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    grey_alpha = Image.new("LA", (2, 2), (0, 0))
    keyed = Image.new("RGB", (2, 2), (1, 2, 3))
    assert load_image(clear).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(half).getpixel((0, 0)) == (127, 127, 127)
    assert load_image(grey_alpha).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(encoded(keyed, transparency=(1, 2, 3))).getpixel((0, 0)) == (255,) * 3
    assert load_image(encoded(clear.convert("LA"))).getpixel((0, 0)) == (255,) * 3


@needs_shared
def test_palette_transparency_is_white_too():
    with Image.open(shared_image("palette_trns.png")) as opened:
        alpha = np.asarray(opened.convert("RGBA"))[..., 3]
    assert (alpha == 0).any()
    assert (np.asarray(load_image(shared_image("palette_trns.png")))[alpha == 0] == 255).all()


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    expected = np.rint(ramp / 257.0)
    for source in (ramp, encoded(Image.fromarray(ramp)), Image.fromarray(ramp.astype(np.int32))):
        grey = np.asarray(load_image(source))
        assert np.array_equal(grey[..., 0], expected)
        assert np.array_equal(grey[..., 0], grey[..., 2])


def test_float_images_are_read_by_their_range():
    unit = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    expected = np.rint(unit.astype(np.float64) * 255)
    depth = Image.fromarray(unit * 10_000 - 3_000)
    for source in (unit, Image.fromarray(unit), Image.fromarray(unit * 255)):
        assert np.abs(np.asarray(load_image(source))[..., 1] - expected).max() <= 1
    with pytest.warns(ImageWarning, match="stretched, the smallest to black"):
        assert np.abs(np.asarray(load_image(depth))[..., 1] - expected).max() <= 1


MODES = (
    *("1", "L", "P", "LA", "La", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"),
    *("LAB", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"),
)


@pytest.mark.parametrize("mode", MODES)
def test_pil_modes(mode):
    image = Image.new(mode, (3, 2))
    assert load_image(image).mode == "RGB"
    assert image.mode == mode


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.int64, bool])
def test_arrays(shape, dtype):
    full = {np.uint8: 255, np.uint16: 65535, np.int64: 255}.get(dtype, 1)
    image = load_image(np.full(shape, full, dtype))
    assert image.size == (7, 5)
    assert image.getpixel((6, 4)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 5, 7), np.uint8), r"shape \(3, 5, 7\).*transpose\(1, 2, 0\)"),
        (np.zeros((2, 5, 7, 3), np.uint8), "one image at a time"),
        (np.zeros((5, 7, 2), np.uint8), r"\[H, W, 1 \| 3 \| 4\]"),
        (np.zeros(5, np.uint8), r"shape \(5,\)"),
        (np.zeros((0, 7), np.uint8), "no pixels"),
        (np.zeros((0, 7, 3), np.uint8), "no pixels"),
        (np.full((2, 2), np.nan, np.float32), "NaN"),
        (np.full((2, 2), -1.5, np.float32), "from -1.5 to -1.5; expected 0..1 or 0..255"),
        (np.full((2, 2), 300, np.int32), "expected 0..1 or 0..255"),
        (np.full((2, 2), "x"), "dtype"),
        (np.full((2, 2), 1j), "dtype complex"),
    ],
)
def test_arrays_that_are_not_images(array, message):
    with pytest.raises(ImageError, match=message):
        load_image(array)


def test_the_source_is_never_changed_or_shared():
    image = Image.new("RGB", (2, 2), "red")
    load_image(image).putpixel((0, 0), (0, 0, 255))
    assert image.getpixel((0, 0)) == (255, 0, 0)
    array = np.zeros((2, 2, 3), np.uint8)
    load_image(array).putpixel((0, 0), (9, 9, 9))
    assert not array.any()


def test_animation_gives_the_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for format in ("GIF", "PNG", "WEBP"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        with pytest.warns(ImageWarning, match="several pages or frames, and the first is read"):
            assert load_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_the_content_decides_the_format(tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(encoded(Image.new("RGB", (3, 2), "blue"), "WEBP"))
    assert load_image(path).size == (3, 2)


@needs_shared
def test_a_truncated_file_is_named():
    with pytest.raises(ImageError, match=r"truncated_hopper\.jpg.*truncated or damaged.*again"):
        load_image(shared_image("truncated_hopper.jpg"))


def test_files_that_cannot_be_used_are_named(tmp_path):
    empty, text = tmp_path / "empty.png", tmp_path / "note.png"
    empty.touch()
    text.write_text("not an image at all, however long this note may be")
    for source, message in [
        (tmp_path / "none.png", r"none\.png.*does not exist"),
        (tmp_path, "is a directory"),
        (empty, r"empty\.png.*is empty"),
        (text, r"note\.png.*not an image in a supported format.*convert it"),
        ("https://example.com/a.png", "is a URL"),
        ("bad\0name.png", "cannot be read"),
        (b"", "is empty"),
        (b"GIF89a", "truncated or damaged|supported format"),
        (12, "from int; expected a path"),
        (None, "from NoneType"),
    ]:
        with pytest.raises(ImageError, match=message):
            load_image(source)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_devices_are_refused_before_they_are_opened(tmp_path):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    for source, kind in ((pipe, r"a pipe \(FIFO\)"), ("/dev/zero", "a device")):
        with pytest.raises(ImageError, match=f"is {kind}, not a regular file"):
            load_image(source)


def test_postscript_is_never_interpreted():
    with pytest.raises(ImageError, match="supported format"):
        load_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")


class TestCaps:
    """The caps are ours alone: PIL's global limit neither warns nor raises through us."""

    def test_pixels_are_judged_by_the_header(self):
        # 20,000 x 20,000 in a few hundred bytes: decoding it would take 400 MB.
        header = encoded(Image.new("1", (20_000, 20_000)))
        assert len(header) < 100_000
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ImageError, match=r"20000x20000.*max_pixels=100000000"):
                load_image(header)

    def test_a_raised_cap_decides_over_pils_limit(self, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        frames = [Image.new("RGB", (50, 40), colour) for colour in ("red", "blue")]
        gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
        with pytest.warns(ImageWarning, match=SEVERAL_PAGES[:40]):
            assert load_image(gif).size == (50, 40)
        for data in (encoded(frames[0]), encoded(frames[0], "TIFF")):
            assert load_image(data).size == (50, 40)
        assert load_image(frames[0]).size == (50, 40)
        assert Image.MAX_IMAGE_PIXELS == 10

    def test_the_limit_survives_threads(self):
        data, before = encoded(Image.new("RGB", (8, 8))), Image.MAX_IMAGE_PIXELS
        with ThreadPoolExecutor(8) as pool:
            assert all(image.size == (8, 8) for image in pool.map(load_image, [data] * 200))
        assert before == Image.MAX_IMAGE_PIXELS

    def test_caps_apply_to_every_source(self, tmp_path):
        image = Image.new("RGB", (10, 11))
        path = tmp_path / "a.png"
        image.save(path)
        for source in (image, path, path.read_bytes(), np.asarray(image)):
            assert load_image(source, max_pixels=110).size == (10, 11)
            with pytest.raises(ImageError, match="max_pixels=109"):
                load_image(source, max_pixels=109)
        for source in (path, path.read_bytes()):
            with pytest.raises(ImageError, match="max_bytes=20"):
                load_image(source, max_bytes=20)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150)
@given(st.data())
def test_damaged_bytes_give_an_image_or_an_image_error(data):
    format = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"]))
    pixels = np.random.RandomState(0).randint(0, 255, (9, 8, 3), np.uint8)
    content = bytearray(encoded(Image.fromarray(pixels), format))
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    with contextlib.suppress(ImageError):
        assert load_image(content, max_pixels=10_000).mode == "RGB"


def test_paths_of_every_kind(tmp_path):
    path = tmp_path / "a b.png"
    Image.new("RGB", (2, 1)).save(path)
    for source in (path, str(path), Path(str(path))):
        assert load_image(source).size == (2, 1)
