"""Pictures of results: in the right place, readable, never an exception for what a model says."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from florence_jax.results import draw, text_writer
from florence_jax.results.draw import PALETTE, draw_result, label_colour

GREY = (128, 128, 128)


def blank(width=200, height=150, colour=GREY):
    return Image.new("RGB", (width, height), colour)


def changed(image, drawn):
    """The (x0, y0, x1, y1) of the pixels that differ, the far corner exclusive; None if none do."""
    difference = np.asarray(drawn) != np.asarray(image)
    ys, xs = np.nonzero(difference.any(axis=-1))
    return (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else None


def boxes(*bboxes, labels=None, **extra):
    return {"<OD>": {"bboxes": list(bboxes), "labels": labels or [""] * len(bboxes), **extra}}


def test_returns_a_new_rgb_picture_of_the_same_size():
    image = blank()
    before = image.tobytes()
    drawn = draw_result(image, boxes([20, 30, 120, 100], labels=["cat"]))
    assert (drawn.mode, drawn.size) == ("RGB", image.size)
    assert image.tobytes() == before
    assert draw_result(image, {}).tobytes() == before


def test_a_box_is_drawn_on_its_edges():
    drawn = draw_result(blank(), boxes([20, 30, 120, 100], labels=[""]), line_width=2)
    colour = PALETTE[0]
    for point in ((20, 65), (120, 65), (70, 30), (70, 100)):
        assert drawn.getpixel(point) == pytest.approx(colour, abs=2)
    assert drawn.getpixel((70, 65)) == GREY
    assert drawn.getpixel((140, 120)) == GREY


def test_inverted_corners_draw_the_same_box():
    upright = draw_result(blank(), boxes([20, 30, 120, 100], labels=["cat"]))
    inverted = draw_result(blank(), boxes([120, 100, 20, 30], labels=["cat"]))
    assert upright.tobytes() == inverted.tobytes()


def test_polygons_are_translucent_and_quads_are_outlines():
    polygon = {"polygons": [[[50, 50, 150, 50, 150, 120, 50, 120]]], "labels": ["cat"]}
    drawn = draw_result(blank(), {"<REGION_TO_SEGMENTATION>": polygon}, fill_opacity=0.5)
    half = tuple((a + b) / 2 for a, b in zip(GREY, label_colour("cat"), strict=True))
    assert drawn.getpixel((100, 100)) == pytest.approx(half, abs=2)

    quad = {"quad_boxes": [[50, 50, 150, 50, 150, 120, 50, 120]], "labels": [""]}
    drawn = draw_result(blank(), {"<OCR_WITH_REGION>": quad})
    assert drawn.getpixel((100, 100)) == GREY
    assert drawn.getpixel((50, 100)) != GREY


def test_open_vocabulary_draws_boxes_and_polygons():
    value = {
        "bboxes": [[10, 10, 40, 40]],
        "bboxes_labels": [""],
        "polygons": [[[100, 100, 140, 100, 120, 140]]],
        "polygons_labels": [""],
    }
    drawn = draw_result(blank(), {"<OPEN_VOCABULARY_DETECTION>": value})
    assert drawn.getpixel((10, 25)) != GREY
    assert drawn.getpixel((120, 115)) != GREY


def test_coordinates_are_in_the_exif_transposed_frame():
    image = blank(200, 100)
    image.getexif()[0x0112] = 6  # stored on its side: the viewer sees 100 x 200
    drawn = draw_result(image, boxes([10, 150, 90, 190]))
    assert drawn.size == (100, 200)
    assert drawn.getpixel((50, 190)) != GREY


@pytest.mark.parametrize(
    ("image", "seen"),
    [
        (Image.new("RGBA", (9, 9), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.new("LA", (9, 9), (7, 255)), (7, 7, 7)),
        (Image.new("1", (9, 9), 1), (255, 255, 255)),
        (Image.new("CMYK", (9, 9), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.fromarray(np.full((9, 9), 128 * 257, np.uint16)), GREY),  # scaled, not clipped
    ],
    ids=lambda v: getattr(v, "mode", ""),
)
def test_every_mode_becomes_rgb(image, seen):
    drawn = draw_result(image, {})
    assert drawn.mode == "RGB"
    assert drawn.getpixel((4, 4)) == seen


@pytest.mark.parametrize("side", [40, 200, 640, 2000])
@pytest.mark.parametrize("where", [(0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0.5)])
def test_label_plates_stay_inside_and_are_drawn(side, where):
    """A plate at each corner of the frame: its colour covers a plate's worth of pixels."""
    image = blank(side, side)
    x, y = (0.8 * side * w for w in where)
    result = boxes([x, y, x + 0.2 * side, y + 0.2 * side], labels=["cat"])
    drawn, bare = draw_result(image, result), draw_result(image, boxes(result["<OD>"]["bboxes"][0]))
    x0, y0, x1, y1 = changed(bare, drawn)
    font_size = max(9, round(6 + 0.018 * side))
    assert x1 - x0 >= 1.5 * font_size
    assert y1 - y0 >= font_size


def test_scores_can_be_left_out():
    scored = boxes([20, 60, 120, 100], labels=["cat"], scores=[0.87])
    plain = draw_result(blank(), boxes([20, 60, 120, 100], labels=["cat"]))
    assert draw_result(blank(), scored).tobytes() != plain.tobytes()
    assert draw_result(blank(), scored, show_scores=False).tobytes() == plain.tobytes()


def test_a_label_has_one_colour_in_every_picture():
    assert label_colour("cat") == label_colour(" Cat ") == PALETTE[2]  # users compare runs
    names = ("person", "car", "dog", "cat", "tree", "house", "bus", "chair", "table", "window")
    assert len({label_colour(name) for name in names}) >= 6


@pytest.mark.parametrize("colour", PALETTE)
def test_plate_text_is_readable(colour):
    """WCAG 2 asks for a contrast of 4.5 between text and ground."""

    def luminance(rgb):
        c = np.asarray(rgb) / 255
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [
            0.2126,
            0.7152,
            0.0722,
        ]

    dark, light = sorted((luminance(colour), luminance(draw._ink(colour))))
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_plates_make_room_for_each_other():
    result = boxes([20, 60, 120, 120], [22, 62, 118, 118], labels=["first", "second"])
    plates = []
    original = text_writer.TextWriter.write
    try:
        text_writer.TextWriter.write = lambda self, draw, at, text, ink: plates.append((text, at))
        draw_result(blank(), result)
    finally:
        text_writer.TextWriter.write = original
    (_, (_, first_y)), (_, (_, second_y)) = plates
    assert abs(first_y - second_y) >= 9


@pytest.mark.parametrize("width", [1, 64, 451, 1200])
def test_text_goes_below_the_picture(width):
    image = blank(width, 100)
    drawn = draw_result(image, {"<CAPTION>": "A cat that lies on a red sofa. " * 4})
    assert drawn.height > 100
    assert drawn.width >= width
    assert drawn.crop((0, 0, width, 100)).tobytes() == image.tobytes()
    panel = np.asarray(drawn)[100:]
    assert (panel < 100).any(), "there is ink"
    assert (panel[:, -2:] > 200).all(), "no line runs out of the panel"


def test_the_panel_wraps_and_keeps_line_breaks():
    writer = text_writer.TextWriter(14, None)
    lines = writer.wrap("one two three four five\nsix " + "x" * 200, 80)
    assert all(writer.length(line) <= 80 for line in lines)
    assert "".join(lines).replace(" ", "") == "onetwothreefourfivesix" + "x" * 200
    assert any(line == "six" for line in lines)


def test_the_panel_does_not_grow_without_end():
    drawn = draw_result(blank(), {"<OCR>": "word \n" * 100_000})
    assert drawn.height < 3000


def test_region_answers_draw_their_box_and_hide_its_tokens():
    text = "cat<loc_100><loc_200><loc_500><loc_600>"
    drawn = draw_result(blank(), {"<REGION_TO_CATEGORY>": text})
    assert drawn.getpixel((20, 60)) != GREY
    plain = draw_result(blank(), {"<REGION_TO_CATEGORY>": "cat"})
    assert np.array_equal(np.asarray(drawn)[150:], np.asarray(plain)[150:])


@pytest.mark.parametrize(
    "label",
    [
        "", " ", "\n\t", "two\nlines", "very long " * 500, "x" * 5000, "café ñandú ß", "Ωμέγα Жук",
        "中文菜单", "日本語", "한국어", "قهوة עברית", "😀👩‍👩‍👧", "a\x00b\x1b[0m",
        "\ud800 lone", "\uffff", "\u202eabc",
        "e\u0301", "<loc_1>",
    ],
)  # fmt: skip
def test_any_text_can_be_written(label):
    result = boxes([20, 60, 120, 100], labels=[label], scores=[0.5])
    drawn = draw_result(blank(), {**result, "<OCR>": label})
    assert drawn.size[0] == 200
    draw_result(blank(30, 12), result)


def test_a_font_can_be_given(tmp_path):
    with pytest.raises(OSError, match="resource"):
        draw_result(blank(), boxes([2, 2, 90, 90], labels=["cat"]), font=tmp_path / "none.ttf")


def test_text_beyond_ascii_uses_a_font_that_has_it():
    assert text_writer.best_font("plain") == ""
    if text_writer._is_installed("DejaVuSans.ttf"):
        assert text_writer.best_font("Жук") == "DejaVuSans.ttf"


nan, inf = math.nan, math.inf


@pytest.mark.parametrize(
    "box",
    [
        [50, 50, 50, 50], [50, 20, 50, 90], [-50, -50, 500, 500], [300, 300, 400, 400],
        [-90, -90, -10, -10], [199, 149, 200, 150], [nan, 1, 2, 3], [1, 1, inf, 3],
        [-1e300, 0, 1e300, 9], [0, 0, 200, 150], np.array([1.5, 2, 30, 40], np.float32),
    ],
)  # fmt: skip
def test_odd_boxes_do_no_harm(box):
    image = blank()
    drawn = draw_result(image, boxes(box, labels=["odd"], scores=[nan]))
    outside = not np.isfinite(box).all() or min(box) >= 300 or max(box) < 0
    assert (drawn.tobytes() == image.tobytes()) == outside


@pytest.mark.parametrize(
    "polygons",
    [
        [], [[]], [[5, 5]], [[5, 5, 90, 90]], [[5, 5, 5, 5, 5, 5]], [[5, 5, 90, 90, 7]],
        [[nan] * 6], [[-1e12, 0, 1e12, 0, 0, 1e12]], [[5, 5, 90, 90, 5, 90], []],
    ],
)  # fmt: skip
def test_odd_polygons_do_no_harm(polygons):
    value = {"polygons": [polygons], "labels": ["odd"]}
    assert draw_result(blank(), {"<REGION_TO_SEGMENTATION>": value}).size == (200, 150)


coordinate = st.floats(allow_nan=True, allow_infinity=True) | st.integers(-300, 600)


@settings(max_examples=150)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    found=st.lists(st.tuples(st.lists(coordinate, min_size=8, max_size=8), st.text(), coordinate)),
    polygon=st.lists(coordinate, max_size=12),
    text=st.text(),
)
def test_no_result_stops_a_drawing(size, found, polygon, text):
    labels, scores = [label for _, label, _ in found], [score for _, _, score in found]
    result = {
        "<OD>": {"bboxes": [c[:4] for c, _, _ in found], "labels": labels, "scores": scores},
        "<OCR_WITH_REGION>": {"quad_boxes": [c for c, _, _ in found], "labels": labels},
        "<REGION_TO_SEGMENTATION>": {"polygons": [[polygon]], "labels": [text]},
    }
    assert draw_result(blank(*size), result).size == size
    assert draw_result(blank(*size), result | {"<CAPTION>": text}).height > size[1]


@pytest.mark.parametrize(
    ("option", "value"), [("line_width", 0), ("font_size", -1), ("fill_opacity", 1.5)]
)
def test_refuses_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=option):
        draw_result(blank(), {}, **{option: value})


def test_refuses_what_is_no_result():
    with pytest.raises(ValueError, match="no bboxes"):
        draw_result(blank(), {"<OD>": {"boxes": []}})
    with pytest.raises(ValueError, match="2 entries but labels has 1"):
        draw_result(blank(), {"<OD>": {"bboxes": [[1, 2, 3, 4]] * 2, "labels": ["a"]}})
