"""Training crops: sizes, shares, mirrors, and masks that move with their image."""

import numpy as np
import pytest
from PIL import Image

from florence_jax.processing.image.crop import CropConfig, preprocess_crop
from florence_jax.segmentation.masks import IGNORED, write_mask
from florence_jax.training.data.preprocess import ExampleRef
from florence_jax.training.images.augment import random_crop, random_crop_with_mask, resize_mask
from florence_jax.training.images.config import ImageAugmentConfig, MixConfig
from florence_jax.training.images.data import CLASS, MASK, LabelledFiles
from florence_jax.training.images.objectives import normalised
from florence_jax.training.images.rows import ImageRows

BICUBIC, NEAREST = 3, 0
# Each pixel's own place: red is its column, green its row.
WIDTH, HEIGHT = 80, 50
PLACES = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
PLACES[..., 0], PLACES[..., 1] = np.arange(WIDTH), np.arange(HEIGHT)[:, None]


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.3, 0.4)])
def test_crops_keep_a_share_of_the_area_and_an_aspect(scale):
    config = ImageAugmentConfig(scale=scale, flip=0.0)
    rng = np.random.default_rng(0)
    image = Image.fromarray(PLACES)
    for _ in range(50):
        crop = random_crop(image, (64, 64), config, NEAREST, rng)
        assert crop.shape == (64, 64, 3)
        wide, tall = (int(np.ptp(crop[..., axis])) + 1 for axis in (0, 1))
        # The nearest pixels of a crop that is enlarged reach its edges, of one that shrinks not.
        assert scale[0] * 0.8 < wide * tall / (WIDTH * HEIGHT) < scale[1] * 1.05
        assert 0.6 < wide / tall < 1.6


def test_a_crop_that_never_fits_is_the_largest_central_one():
    config = ImageAugmentConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    crop = random_crop(Image.fromarray(PLACES), (50, 50), config, NEAREST, np.random.default_rng(0))
    np.testing.assert_array_equal(crop, PLACES[:, 15:65])


def test_mirrors_and_colours_have_their_probability():
    rng = np.random.default_rng(0)
    image = Image.fromarray(PLACES)
    config = ImageAugmentConfig(scale=(1.0, 1.0), ratio=(1.6, 1.6), flip=0.25)
    crops = [random_crop(image, (HEIGHT, WIDTH), config, NEAREST, rng) for _ in range(200)]
    mirrored = np.mean([crop[0, 0, 0] > crop[0, -1, 0] for crop in crops])
    assert 0.15 < mirrored < 0.35
    shaded = ImageAugmentConfig(scale=(1.0, 1.0), ratio=(1.6, 1.6), flip=0.0, colour=0.5)
    assert len({random_crop(image, (5, 8), shaded, 3, rng).tobytes() for _ in range(5)}) == 5


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_mask_moves_with_its_image(scale, flip):
    mask = (PLACES[..., 0] // 10).astype(np.int32)
    config = ImageAugmentConfig(scale=(scale, scale), flip=flip)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        pixels, classes = random_crop_with_mask(
            Image.fromarray(PLACES), mask, (40, 60), config, NEAREST, rng
        )
        assert pixels.shape == (40, 60, 3)
        assert classes.shape == (40, 60)
        counted = classes != IGNORED
        # At half the size that covers the crop, half of each side is beyond the image.
        assert counted.all() == (scale >= 1.0)
        np.testing.assert_array_equal(classes[counted], pixels[counted][:, 0] // 10)
        assert not pixels[~counted].any()


def test_classes_are_never_mixed():
    mask = np.array([[0, 200], [100, IGNORED]], np.int32)
    assert set(np.unique(resize_mask(mask, (7, 9)))) == {0, 100, 200, IGNORED}


def test_rows_of_an_evaluation_are_the_pixels_that_the_network_was_trained_for(tmp_path):
    Image.fromarray(PLACES).save(tmp_path / "a.png")
    files = LabelledFiles(name="valid", root=tmp_path, files=("a.png",), labels=({CLASS: 3},))
    image = CropConfig(size=(32, 32), crop_pct=0.9)
    row = ImageRows(image=image, num_classes=4)(
        ExampleRef("valid", files, 0), np.random.default_rng(0)
    )
    assert row.labels is not None
    assert row.labels.tolist() == [3]
    found = np.asarray(normalised(row.image[None], image.pixels))[0]
    np.testing.assert_allclose(found, preprocess_crop(tmp_path / "a.png", image), atol=1e-6)


def test_a_mask_s_row_of_an_evaluation_is_the_middle(tmp_path):
    Image.fromarray(PLACES).save(tmp_path / "a.png")
    write_mask(tmp_path / "m.png", PLACES[..., 0])
    labels = ({MASK: tmp_path / "m.png"},)
    files = LabelledFiles(name="valid", root=tmp_path, files=("a.png",), labels=labels)
    image = CropConfig(size=(HEIGHT, 40), resample=BICUBIC)
    rows = ImageRows(image=image, num_classes=WIDTH, labels=HEIGHT * 40)
    row = rows(ExampleRef("valid", files, 0), np.random.default_rng(0))
    assert row.labels is not None
    np.testing.assert_array_equal(row.labels.reshape(HEIGHT, 40), PLACES[:, 20:60, 0])
    np.testing.assert_array_equal(row.image, PLACES[:, 20:60])


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (MixConfig, {"mixup_prob": 1.5}, r"mix\.mixup_prob must be within \[0, 1\), got 1\.5"),
        (MixConfig, {"erasing_area": (0.5, 0.1)}, r"mix\.erasing_area must be \(smallest, larg"),
        (MixConfig, {"erasing_aspect": 2.0}, r"mix\.erasing_aspect must be within \(0, 1\], got 2"),
        (ImageAugmentConfig, {"scale": (0.0, 1.0)}, r"data\.augment\.scale must be \(smallest"),
    ],
)
def test_settings_that_do_not_fit_are_said(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)
