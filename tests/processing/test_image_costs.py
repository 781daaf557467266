"""What a picture may cost: its pixels bound the memory, whatever its sides and its metadata."""

import io
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from florence_jax.processing import ImageError, load_image
from florence_jax.processing.image.load import MAX_SIDE
from florence_jax.processing.image.pixels import resize_image
from tests.processing.test_image import encoded
from tests.processing.test_sample_range import png
from tests.shared_data import needs_shared, shared_path


@needs_shared
def test_the_picture_of_the_field():
    (path,) = [path for path in field_pictures() if path.stat().st_size > 10_000]
    with pytest.raises(ImageError, match="100000000x1: a side of more than 1000000 pixels"):
        load_image(path)


def field_pictures():
    return sorted(shared_path("..", "field", "wide_png").rglob("*.png"))


@pytest.mark.parametrize("size", [(MAX_SIDE + 1, 1), (1, MAX_SIDE + 1), (100_000_000, 1)])
def test_a_side_is_capped_by_the_header(size):
    for source in (encoded(Image.new("1", size)), Image.new("1", size)):
        with pytest.raises(ImageError, match=rf"{size[0]}x{size[1]}: a side.*cut the image"):
            load_image(source)
    with pytest.raises(ImageError, match="a side of more than"):
        load_image(np.zeros(size[::-1], np.uint8))


def test_the_longest_pictures_are_resized_in_the_memory_of_their_pixels():
    """Width first, as PIL resizes, 40 x 1,000,000 pixels would need 3 GB."""
    program = textwrap.dedent("""
        import resource, sys
        from PIL import Image
        from florence_jax.processing.image.load import load_image
        from florence_jax.processing.image.pixels import resize_image
        held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + (1 << 30), held + (1 << 30)))
        for size in ((40, 1_000_000), (1_000_000, 40)):
            picture = load_image(Image.new("L", size, 200))
            small = resize_image(picture, (768, 768), Image.Resampling.BICUBIC)
            print(small.size, small.getextrema())
        try:
            load_image(sys.stdin.buffer.read())
        except ValueError as error:
            print(error)
    """)
    bomb = encoded(Image.new("1", (100_000_000, 1)))
    done = subprocess.run([sys.executable, "-c", program], input=bomb, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stdout.decode().splitlines()
    assert lines[:2] == ["(768, 768) ((200, 200), (200, 200), (200, 200))"] * 2
    assert "a side of more than 1000000 pixels" in lines[2]


def test_the_other_order_of_resizing_rounds_by_one_at_most():
    noise = np.random.default_rng(0).integers(0, 256, (140_000, 3, 3), np.uint8)
    picture = Image.fromarray(noise)
    assert 768 * picture.height > 100_000_000
    ours = np.asarray(resize_image(picture, (768, 768), 3)).astype(int)
    pil = np.asarray(picture.resize((768, 768), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(ours - pil).max() <= 1


def test_too_little_memory_is_said(monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    data = encoded(Image.new("RGB", (4, 4)))
    monkeypatch.setattr(Image.Image, "resize", fail)
    with pytest.raises(ImageError, match="4x4 pixels needs more memory than there is to be resiz"):
        resize_image(Image.new("RGB", (4, 4)), (2, 2), 3)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(ImageError, match="needs more memory than there is to be decoded"):
        load_image(data)
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ImageError, match="needs more memory than there is to be decoded"):
        load_image(data)


class TestTextsAndProfiles:
    """A PNG is read without the texts and the colour profile that PIL finds too large."""

    COLOR = (10, 200, 30)
    BIG = b"\0" * (3 << 20)

    @pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
    def test_a_chunk_that_unpacks_to_megabytes(self, kind):
        packed = zlib.compress(self.BIG)
        content = {
            b"iCCP": b"profile\0\0" + packed,
            b"zTXt": b"Comment\0\0" + packed,
            b"iTXt": b"Comment\0\1\0\0\0" + packed,
        }[kind]
        values = np.full((3, 5, 3), 65535, np.uint16)
        assert load_image(png(values, 2, (kind, content))).getpixel((4, 2)) == (255, 255, 255)

    def test_texts_behind_the_pixels(self):
        image = Image.new("RGB", (3, 2), self.COLOR)
        text = PngImagePlugin.PngInfo()
        for number in range(70):
            text.add_text(f"Text{number}", "x" * (1 << 20), zip=True)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", pnginfo=text)
        data = buffer.getvalue()
        first, end = data.index(b"zTXt") - 4, data.index(b"IDAT") - 4
        last = data.index(b"IEND") - 4
        moved = data[:first] + data[end:last] + data[first:end] + data[last:]
        for content in (data, moved):
            assert load_image(content).getpixel((0, 0)) == self.COLOR

    def test_orientation_and_transparency_stay(self):
        exif = Image.Exif()
        exif[0x0112] = 6
        profile = np.random.default_rng(0).integers(0, 256, 2 << 20, np.uint8).tobytes()
        data = encoded(Image.new("RGBA", (4, 2)), exif=exif, icc_profile=profile)
        loaded = load_image(data)
        assert loaded.size == (2, 4)
        assert loaded.getpixel((0, 0)) == (255, 255, 255)

    def test_damage_beside_it_is_still_an_error(self):
        profile = np.random.default_rng(0).integers(0, 256, 2 << 20, np.uint8).tobytes()
        noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
        data = encoded(Image.fromarray(noise), icc_profile=profile)
        with pytest.raises(ImageError, match="truncated or damaged"):
            load_image(data[:-5000])

    def test_a_large_profile_of_a_jpeg(self):
        data = encoded(Image.new("RGB", (4, 2), "red"), "JPEG", icc_profile=self.BIG)
        assert load_image(data).size == (4, 2)


def test_names_are_shortened_and_escaped():
    long = "/".join(["d" * 200] * 10) + "/\x1b[31m\u202ename.png"
    with pytest.raises(ImageError) as raised:
        load_image(long)
    message = str(raised.value)
    assert len(message) < 600
    assert message.isprintable()
    assert "name.png" in message
