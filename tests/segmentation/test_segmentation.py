"""Sliding windows, masks and scores, beside plain computations."""

import numpy as np
import pytest
from PIL import Image

import florence_jax as fj
from florence_jax.segmentation.masks import IGNORED, draw_mask, palette, read_mask, write_mask
from florence_jax.segmentation.metrics import confusion, scores
from florence_jax.segmentation.sliding_window import sliding_logits


class Coordinates:
    """A stand-in for a network: logits that tell the window's own pixels and the image's."""

    class config:
        num_classes = 2

    def __init__(self, window):
        self.window = window

    def logits(self, params, images):
        rows = np.broadcast_to(np.arange(self.window[0])[None, :, None], images.shape[:3])
        return np.stack([np.asarray(images)[..., 0], rows], axis=-1).astype(np.float32)


@pytest.mark.parametrize("size", [(7, 9), (5, 4), (3, 2), (13, 5)])
def test_windows_cover_every_pixel_and_are_averaged(size):
    window, stride = (5, 4), (3, 3)
    image = np.random.default_rng(0).random((*size, 3)).astype(np.float32)
    found = sliding_logits(Coordinates(window), {}, image, window=window, stride=stride)
    assert found.shape == (*size, 2)
    np.testing.assert_allclose(found[..., 0], image[..., 0], rtol=1e-6)
    # The mean of a pixel's row in all windows that see it, window after window.
    tops = []
    top = 0
    while True:
        tops.append(min(top, max(size[0] - window[0], 0)))
        if top + window[0] >= size[0]:
            break
        top += stride[0]
    for row in range(size[0]):
        inside = [row - top for top in tops if top <= row < top + window[0]]
        np.testing.assert_allclose(found[row, :, 1], np.mean(inside), rtol=1e-6)
    with pytest.raises(ValueError, match="stride is 6 rows, expected 1 to 5"):
        sliding_logits(Coordinates(window), {}, image, window=window, stride=(6, 1))


def test_masks_are_checked(tmp_path):
    mask = np.array([[0, 1, 2], [2, IGNORED, 1]])
    write_mask(tmp_path / "mask.png", mask)
    file = tmp_path / "mask.png"
    np.testing.assert_array_equal(read_mask(file, num_classes=3, size=(2, 3)), mask)
    expected = np.array([[IGNORED, 0, 1], [1, IGNORED, 0]])
    reduced = read_mask(file, num_classes=2, size=(2, 3), reduce_zero_label=True)
    np.testing.assert_array_equal(reduced, expected)
    with pytest.raises(fj.ImageError, match="has 2 x 3 pixels, its image 4 x 3"):
        read_mask(file, num_classes=3, size=(4, 3))
    with pytest.raises(fj.ImageError, match=r"has class 2, expected 0 to 1, or 255"):
        read_mask(file, num_classes=2, size=(2, 3))
    Image.new("RGB", (3, 2)).save(file)
    with pytest.raises(fj.ImageError, match="is an image of mode RGB, expected a mask of 8 bits"):
        read_mask(file, num_classes=2, size=(2, 3))


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda data: b"", "is truncated or damaged"),
        (lambda data: data[:60], "is truncated or damaged"),
        (lambda data: data[:40] + b"\0\1\2\3" + data[44:], "is truncated or damaged"),
        (lambda data: b"no image", "is truncated or damaged"),
    ],
)
def test_damaged_masks_are_one_sentence(damage, match, tmp_path):
    """Whatever PIL raises: OSError, SyntaxError, zlib's error."""
    file = tmp_path / "mask.png"
    write_mask(file, np.zeros((9, 9), int))
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(fj.ImageError, match=match):
        read_mask(file, num_classes=3, size=(9, 9))


@pytest.mark.parametrize("mode", ["1", "I;16", "LA", "RGBA"])
def test_masks_of_other_modes_are_refused(mode, tmp_path):
    Image.new(mode, (3, 2)).save(tmp_path / "mask.png")
    with pytest.raises(fj.ImageError, match=f"is an image of mode {mode}, expected a mask of 8"):
        read_mask(tmp_path / "mask.png", num_classes=3, size=(2, 3))


def test_a_mask_of_a_turned_image_says_so(tmp_path):
    write_mask(tmp_path / "mask.png", np.zeros((4, 6), int))
    with pytest.raises(fj.ImageError, match=r"4 x 6 pixels, its image 6 x 4 \(upright, by its E"):
        read_mask(tmp_path / "mask.png", num_classes=3, size=(6, 4))


def test_masks_are_drawn():
    image = Image.new("RGB", (2, 1), (100, 100, 100))
    drawn = np.asarray(draw_mask(image, np.array([[1, IGNORED]]), opacity=0.5))
    np.testing.assert_array_equal(drawn[0, 0], np.rint(50 + palette()[1] / 2).astype(np.uint8))
    np.testing.assert_array_equal(drawn[0, 1], [100, 100, 100])
    assert len(np.unique(palette(), axis=0)) > 200


def test_scores_of_two_images():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, (2, 2, 6, 7))
    labels[0, 0], labels[labels == 3], predicted[predicted == 3] = IGNORED, 2, 2
    matrix = sum(confusion(one, truth, 4) for one, truth in zip(predicted, labels, strict=True))
    found = scores(matrix)
    counted = labels != IGNORED
    iou, accuracy = [], []
    for kind in range(3):
        truth, answer = (labels == kind) & counted, (predicted == kind) & counted
        iou.append((truth & answer).sum() / (truth | answer).sum())
        accuracy.append((truth & answer).sum() / truth.sum())
    np.testing.assert_allclose(found.iou[:3], iou)
    assert np.isnan(found.iou[3])
    assert found.mean_iou == pytest.approx(np.mean(iou))
    assert found.mean_accuracy == pytest.approx(np.mean(accuracy))
    assert found.pixel_accuracy == pytest.approx((labels == predicted)[counted].mean())
    with pytest.raises(ValueError, match="no pixel of any mask counts"):
        scores(confusion(predicted, np.full_like(labels, IGNORED), 4))


def test_masks_that_cannot_be_written_or_drawn_are_refused(tmp_path):
    with pytest.raises(ValueError, match="classes from -1 to 3, expected 0 to 254"):
        write_mask(tmp_path / "mask.png", np.array([[-1, 3]]))
    assert not (tmp_path / "mask.png").exists()
    with pytest.raises(ValueError, match="mask is 3 x 1 pixels, its image 2 x 1"):
        draw_mask(Image.new("RGB", (2, 1)), np.zeros((1, 3), int))
