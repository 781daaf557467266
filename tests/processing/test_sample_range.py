"""Images wider than 8 bits: white is where the file says, or where its values suggest."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from florence_jax.processing import ImageError, load_image
from florence_jax.processing.image import ImageWarning
from tests.processing.test_image import encoded

RAMP = np.linspace(0, 1, 64).reshape(8, 8)
EIGHT = np.rint(RAMP * 255)


def grey(source, note=None):
    """The first channel of `source` as int, and that it warns of `note` and of nothing else."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        values = np.asarray(load_image(source)).astype(int)
    said = [str(warning.message) for warning in caught if warning.category is ImageWarning]
    assert len(said) == (note is not None), said
    if note is not None:
        assert note in said[0]
    return values[..., 0]


def assert_is_the_ramp(source, note=None):
    assert np.abs(grey(source, note) - EIGHT).max() <= 1


def ramp(white, dtype=np.uint16):
    return np.rint(RAMP * white).astype(dtype)


def png(values, color_type, *chunks):
    """A 16-bit PNG of uint16[H, W, C]."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + b"".join(chunk(*one) for one in chunks)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(
    values, *, bits=16, sample_format=1, photometric=1, order="<", samples=1, compression=1, tags=()
):
    """A TIFF of one strip; `values` are its bytes."""
    entries = [
        (256, 3, 8), (257, 3, 8), (258, 3, bits), (259, 3, compression), (262, 3, photometric),
        (273, 4, 1000), (277, 3, samples), (278, 3, 8), (279, 4, len(values)),
        (339, 3, sample_format), *tags,
    ]  # fmt: skip
    content = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    content += struct.pack(order + "H", len(entries))
    behind = {}
    for tag, kind, value in sorted(entries):
        packed, count = struct.pack(order + {3: "H2x", 4: "I", 11: "f"}[kind], value), 1
        if samples > 2 and tag in (258, 339):
            # One value a channel, which do not fit into the entry.
            at, count = {258: 900, 339: 920}[tag], samples
            packed = struct.pack(order + "I", at)
            behind[at] = struct.pack(order + "H", value) * samples
        content += struct.pack(order + "HHI", tag, kind, count) + packed
    content = bytearray((content + struct.pack(order + "I", 0)).ljust(1000, b"\0"))
    for at, several in behind.items():
        content[at : at + len(several)] = several
    return bytes(content) + values


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "array", "PIL"])
def test_16_bit_files_hold_as_many_bits_as_their_largest_value_needs(bits, format):
    values = ramp((1 << bits) - 1)
    image = Image.fromarray(values)
    source = {"array": values, "PIL": image}.get(format)
    note = f"it is read as {bits}-bit" if bits < 16 else None
    assert_is_the_ramp(encoded(image, format) if source is None else source, note)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_every_byte_order_of_16_bits(mode):
    dtype = {"I;16B": ">u2"}.get(mode, "<u2")
    image = Image.frombytes(mode, (8, 8), ramp(4095, dtype).tobytes(), "raw", mode)
    assert_is_the_ramp(image, "read as 12-bit")


def test_a_12_bit_camera_whose_brightest_pixel_is_below_white():
    assert grey(np.full((2, 2), 2048, np.uint16), "above 4095")[0, 0] == 128


def test_a_guess_is_said_once_for_many_images(recwarn):
    warnings.simplefilter("default")
    for white in (4095, 4000, 3999):
        load_image(ramp(white))
    assert len(recwarn) == 1


def test_black_is_black_without_a_note():
    assert not grey(np.zeros((8, 8), np.uint16)).any()
    assert not grey(Image.new("I", (8, 8))).any()


def ppm(values, kind):
    """A PPM of 16 bits, binary (P6) or plain (P3)."""
    plain = b" # a comment\n".join(b"%d" % value for value in values.ravel()) + b"\n"
    body = plain if kind == "P3" else values.astype(">u2").tobytes()
    return kind.encode() + b" 8 8 65535\n" + body


@pytest.mark.parametrize("kind", ["P6", "P3"])
@pytest.mark.parametrize("bits", [8, 12, 14, 16])
def test_a_colour_ppm_of_16_bits_holds_as_many_as_its_values_need(kind, bits):
    values = np.repeat(ramp((1 << bits) - 1)[..., None], 3, axis=-1)
    assert_is_the_ramp(ppm(values, kind), f"read as {bits}-bit" if bits < 16 else None)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_jpeg_2000_of_16_bits_holds_as_many_as_its_values_need(bits):
    image = encoded(Image.fromarray(ramp((1 << bits) - 1)), "JPEG2000")
    assert_is_the_ramp(image, f"read as {bits}-bit" if bits < 16 else None)


@pytest.mark.parametrize("wrap", [png, ppm])
def test_a_pil_image_that_is_not_decoded_yet_is_read_like_its_file(wrap):
    values = np.repeat(ramp(4095)[..., None], 3, axis=-1)
    image = Image.open(io.BytesIO(wrap(values, 2 if wrap is png else "P6")))
    assert_is_the_ramp(image, "read as 12-bit")
    # Its pixels are left undecoded: decoded by Pillow, they have lost their low bytes.
    assert_is_the_ramp(image, "read as 12-bit")


def test_ink_of_fewer_than_16_bits_is_said_to_be_lost():
    ink = np.zeros((8, 8, 4), np.uint16)
    ink[..., 0] = ramp(4095)
    assert grey(tiff(ink.tobytes(), photometric=5, samples=4), "only the high bytes").min() >= 239


@pytest.mark.parametrize("white", [255, 65535])
def test_a_tiff_palette_of_8_or_16_bits(white):
    palette = np.rint(np.linspace(0, white, 256)).astype("<u2").tobytes() * 3
    content = bytearray(tiff(ramp(255, np.uint8).tobytes(), bits=8, photometric=3))
    # One entry more, of a palette that stands behind the pixels.
    entries = struct.unpack_from("<H", content, 8)[0]
    struct.pack_into("<H", content, 8, entries + 1)
    at = 10 + 12 * entries
    last = bytes(content[at - 12 : at])
    struct.pack_into("<HHII", content, at - 12, 320, 3, 768, len(content))
    content[at : at + 12] = last
    assert_is_the_ramp(bytes(content) + palette)


def test_a_tiff_of_float64_is_refused_by_the_kind_of_its_samples():
    content = tiff(RAMP.astype("<f8").tobytes(), bits=64, sample_format=3)
    with pytest.raises(ImageError, match="float64"):
        load_image(content)


class TestIntegers:
    def test_int32_of_8_bits(self):
        image = Image.fromarray(ramp(255, np.int32))
        assert_is_the_ramp(image, "no value above 255: it is read as 8-bit")
        assert_is_the_ramp(encoded(image, "TIFF"), "read as 8-bit")

    @pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32, np.int16, np.uint64])
    def test_integer_arrays_of_8_bits(self, dtype):
        assert_is_the_ramp(ramp(255, dtype))

    def test_uint32_that_needs_its_sign_bit(self):
        data = tiff(np.rint(RAMP * 0xFFFFFFFF).astype("<u4").tobytes(), bits=32)
        assert_is_the_ramp(data, "stretched")

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_signed_16_bit(self, order):
        for low, white in ((-1000, 3000), (-32768, 32767)):
            values = np.rint(low + RAMP * (white - low)).astype(order + "i2")
            data = tiff(values.tobytes(), sample_format=2, order=order)
            assert_is_the_ramp(data, "stretched")
        assert_is_the_ramp(tiff(ramp(32767, order + "i2").tobytes(), sample_format=2, order=order))

    def test_white_is_zero(self):
        data = tiff((65535 - ramp(65535)).astype("<u2").tobytes(), photometric=0)
        assert_is_the_ramp(data)

    def test_a_transparent_grey_is_paper(self):
        values = ramp(65535)
        data = png(values[..., None], 0, (b"tRNS", struct.pack(">H", 0)))
        assert grey(data)[0, 0] == 255
        assert grey(data)[0, 1] == EIGHT[0, 1]


class TestDeclared:
    """What a file says about its range is believed, and nothing is guessed."""

    @pytest.mark.parametrize("kind", [3, 4])
    @pytest.mark.parametrize("tag", [281, 341])
    def test_the_largest_sample_of_a_tiff(self, tag, kind):
        data = tiff(ramp(3000, "<u2").tobytes(), tags=[(tag, kind, 3000)])
        assert_is_the_ramp(data)

    def test_dark_values_of_a_declared_full_range_stay_dark(self):
        values = np.full((8, 8), 2570, "<u2")
        data = tiff(values.tobytes(), tags=[(341, 3, 65535)])
        assert (grey(data) == 10).all()

    def test_a_declared_maximum_that_is_exceeded_is_wrong(self):
        data = tiff(ramp(4095, "<u2").tobytes(), tags=[(281, 3, 300)])
        assert_is_the_ramp(data, "12-bit")

    def test_packed_12_bits_of_a_tiff(self):
        values = ramp(2000).reshape(-1)  # far from 4095: the depth decides, not the values
        bits = "".join(f"{value:012b}" for value in values)
        packed = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
        expected = np.rint(values / 4095 * 255).reshape(8, 8)
        assert np.array_equal(grey(tiff(packed, bits=12)), expected)

    @pytest.mark.parametrize("white", [255, 1000, 4095, 65535])
    @pytest.mark.parametrize("plain", [False, True])
    def test_the_maximum_of_a_pgm(self, white, plain):
        values = ramp(white)
        header = b"P%d 8 8 %d\n" % (2 if plain else 5, white)
        raw = values.astype(">u2" if white > 255 else "u1").tobytes()
        text = " ".join(map(str, values.reshape(-1))).encode()
        assert_is_the_ramp(header + (text if plain else raw))
        dark = np.full((8, 8), white // 100 + 1)
        raw = dark.astype(">u2" if white > 255 else "u1").tobytes()
        if white not in (255, 65535):
            assert np.abs(grey(header.replace(b"P2", b"P5") + raw) - 3).max() <= 1

    def test_significant_bits_of_a_png(self):
        sbit = (b"sBIT", bytes([12]))
        assert_is_the_ramp(png(ramp(4095)[..., None], 0, sbit))
        dark = png(np.full((8, 8, 1), 1000, np.uint16), 0, sbit)
        assert (grey(dark) == round(1000 / 4095 * 255)).all()
        # As the standard wants it: scaled up to the full depth.
        assert_is_the_ramp(png(ramp(4095)[..., None] << 4, 0, sbit))


class TestColor:
    """Pillow keeps the high bytes of 16-bit colour: of 12-bit samples these are black."""

    @pytest.mark.parametrize(("color_type", "channels"), [(2, 3), (6, 4), (4, 2)])
    @pytest.mark.parametrize("opaque", [4095, 65535])
    def test_12_bits_in_a_16_bit_png(self, color_type, channels, opaque):
        values = np.repeat(ramp(4095)[..., None], channels, axis=-1)
        if channels != 3:
            values[..., -1] = opaque
        assert_is_the_ramp(png(values, color_type), "read as 12-bit")

    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("compression", [1, 8])
    def test_12_bits_in_a_16_bit_tiff(self, order, compression):
        values = np.repeat(ramp(4095, order + "u2")[..., None], 3, axis=-1).tobytes()
        content = zlib.compress(values) if compression == 8 else values
        data = tiff(content, photometric=2, samples=3, order=order, compression=compression)
        assert_is_the_ramp(data, "read as 12-bit")

    def test_planes_of_16_bits_are_refused(self):
        values = np.repeat(ramp(65535, "<u2")[None], 3, axis=0).tobytes()
        data = tiff(values, photometric=2, samples=3, tags=[(284, 3, 2)])
        with pytest.raises(ImageError, match="16-bit planes"):
            load_image(data)

    def test_channels_keep_their_proportions(self):
        values = np.stack([ramp(4095), ramp(4095) // 2, ramp(4095) // 4], axis=-1)
        with pytest.warns(ImageWarning, match="12-bit"):
            rgb = np.asarray(load_image(png(values, 2))).astype(int)
        assert np.abs(rgb - np.rint(values / 4095 * 255)).max() <= 1

    def test_full_16_bits_are_as_pillow_reads_them(self):
        values = np.repeat(ramp(65535)[..., None], 3, axis=-1)
        assert_is_the_ramp(png(values, 2))

    def test_alpha_of_arrays_has_a_range_of_its_own(self):
        color = np.repeat(ramp(4095)[..., None], 3, axis=-1)
        for opaque in (4095, 65535):
            alpha = np.full((8, 8, 1), opaque, np.uint16)
            assert_is_the_ramp(np.concatenate([color, alpha], axis=-1), "12-bit")
        floats = np.repeat(EIGHT[..., None], 3, axis=-1).astype(np.float32)
        with_alpha = np.concatenate([floats, np.ones((8, 8, 1), np.float32)], axis=-1)
        assert_is_the_ramp(with_alpha)


class TestFloats:
    @pytest.mark.parametrize("make", [np.asarray, Image.fromarray])
    def test_overshoot_is_clipped(self, make):
        unit = RAMP.astype(np.float32)
        over = unit.copy()
        over[-1, -1] = 1.08
        over[0, 0] = -0.05
        assert_is_the_ramp(make(over), "outside 0..1 are read as overshoot")
        bytes_over = over * 255
        assert_is_the_ramp(make(bytes_over), "outside 0..255 are read as overshoot")
        assert_is_the_ramp(make(unit))
        assert_is_the_ramp(make(unit * 255))

    def test_a_maximum_of_1_08_in_a_tiff(self):
        values = (RAMP * 1.08).astype(np.float32)
        expected = np.clip(np.rint(values * 255), 0, 255)
        data = encoded(Image.fromarray(values), "TIFF")
        assert np.abs(grey(data, "outside 0..1") - expected).max() <= 1

    def test_whole_numbers_are_8_bit_however_dark(self):
        assert (grey(np.full((8, 8), 2.0, np.float32)) == 2).all()

    def test_almost_black_is_said(self):
        assert (grey(np.full((8, 8), 5.5, np.float32), "almost black") == 6).all()

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_every_float(self, dtype):
        assert_is_the_ramp(RAMP.astype(dtype))

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_values_that_are_not_finite(self, bad):
        values = RAMP.astype(np.float32)
        values[3, 3] = bad
        for source in (values, Image.fromarray(values), encoded(Image.fromarray(values), "TIFF")):
            with pytest.raises(ImageError, match="NaN or infinite"):
                load_image(source)

    def test_normalised_arrays_are_refused_and_depth_maps_stretched(self):
        values = (RAMP * 4 - 2).astype(np.float32)
        with pytest.raises(ImageError, match=r"from -2 to 2; expected 0\.\.1 or 0"):
            load_image(values)
        assert_is_the_ramp(encoded(Image.fromarray(values), "TIFF"), "stretched")


def test_ink_is_inverted_once():
    white = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    for format in ("JPEG", "TIFF"):
        assert (grey(encoded(white, format)) == 255).all()


def test_premultiplied_alpha_is_divided_out():
    half = Image.new("RGBa", (2, 2), (100, 0, 0, 128))
    assert load_image(half).getpixel((0, 0)) == pytest.approx((226, 127, 127), abs=1)


def test_one_bit_images():
    bits = Image.fromarray(RAMP > 0.5)
    for source in (bits, encoded(bits, "PNG"), encoded(bits, "TIFF", compression="group4")):
        assert np.array_equal(grey(source), (RAMP > 0.5) * 255)


def test_the_tags_are_the_ones_that_pillow_knows():
    assert {281, 341} <= set(TiffImagePlugin.TiffTags.TAGS_V2)
