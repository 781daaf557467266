"""The bundled picture: always the same, and its annotations lie where things are drawn."""

import json

import numpy as np
import pytest
from PIL import Image

from florence_jax.demo.street_scene import demo_scene
from florence_jax.results.draw import draw_result
from florence_jax.results.instances import instances, result_to_json


def test_same_picture_every_time():
    first, truth = demo_scene()
    second, truth_again = demo_scene()
    assert (first.mode, first.size) == ("RGB", (640, 480))
    assert first.tobytes() == second.tobytes()
    assert truth == truth_again


@pytest.mark.parametrize("size", [(640, 480), (64, 64), (200, 150), (1100, 700), (2100, 1400)])
def test_everything_annotated_is_inside_the_picture(size):
    picture, truth = demo_scene(size)
    assert picture.size == size
    for value in truth.values():
        for instance in instances(value, size):
            x0, y0, x1, y1 = instance.bounds()
            assert 0 <= x0 < x1 <= size[0]
            assert 0 <= y0 < y1 <= size[1]


def _box(truth, label):
    objects = truth["<OD>"]
    return objects["bboxes"][objects["labels"].index(label)]


@pytest.mark.parametrize(
    ("label", "is_its_colour"),
    [
        ("sun", lambda r, g, b: (r > 240) & (g > 180) & (b < 110)),
        ("car", lambda r, g, b: (r > 190) & (g < 90) & (b < 90)),
        ("door", lambda r, g, b: (abs(r - 0x3D) < 6) & (abs(g - 0x6B) < 6) & (abs(b - 0x58) < 6)),
        ("street sign", lambda r, g, b: (r < 60) & (g < 120) & (b > 140)),
    ],
)
def test_boxes_fit_what_is_drawn(label, is_its_colour):
    """The pixels of an object's own colour reach from edge to edge of its box, and not beyond.

    Tolerance: 4 px, the sign's white rim and the rounding of edges; the sign's pole and the car's
    wheels have other colours, so their lower edge is not compared.
    """
    picture, truth = demo_scene()
    mask = is_its_colour(*np.moveaxis(np.asarray(picture).astype(int), -1, 0))
    ys, xs = np.nonzero(mask)
    x0, y0, x1, y1 = _box(truth, label)
    assert np.abs([xs.min() - x0, ys.min() - y0, xs.max() - x1]).max() <= 4
    assert ys.max() <= y1 + 1


def test_the_quads_hold_the_words():
    """White ink on the sign lies in the two quads, and outside them there is none but the rim."""
    picture, truth = demo_scene()
    ink = np.asarray(picture).min(axis=-1) > 150
    x0, y0, x1, _ = (round(c) for c in _box(truth, "street sign"))
    sign = np.zeros_like(ink)
    sign[y0 + 6 : y0 + 56, x0 + 6 : x1 - 6] = True
    words = truth["<OCR_WITH_REGION>"]
    assert words["labels"] == truth["<OCR>"].splitlines()
    for quad in words["quad_boxes"]:
        (left, top), (right, bottom) = (
            np.floor(quad[:2]).astype(int),
            np.ceil(quad[4:6]).astype(int),
        )
        inside = (slice(top - 1, bottom + 1), slice(left - 1, right + 1))
        assert ink[inside].mean() > 0.1
        sign[inside] = False
    assert not ink[sign].any()


def test_truth_is_json_and_can_be_drawn():
    picture, truth = demo_scene()
    assert json.loads(json.dumps(result_to_json(truth), allow_nan=False)) == truth
    drawn = draw_result(picture, truth)
    assert isinstance(drawn, Image.Image)
    assert drawn.height > picture.height  # the captions are below


@pytest.mark.parametrize("size", [(63, 480), (640, 0), (9000, 480)])
def test_refuses_sizes_out_of_range(size):
    with pytest.raises(ValueError, match="64 to 8192"):
        demo_scene(size)
