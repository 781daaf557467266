"""`preprocess_image` gives transformers' bits."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from florence_jax.processing import ImageConfig, ImageError, load_image, preprocess_image
from tests.shared_data import needs_shared, shared_path


def reference(native_processor, image, **options):
    batch = native_processor.image_processor(image, return_tensors="np", **options)
    return np.moveaxis(batch["pixel_values"][0], 0, -1)


@needs_shared
@pytest.mark.parametrize(
    "name",
    ["chelsea.jpg", "receipt_cord.jpg", "rocket.jpg", "one_pixel.png", "exif_portrait_6_small.jpg"],
)
def test_bit_exact_to_transformers_on_rgb(native_processor, name):
    assert type(native_processor.image_processor).__name__ == "CLIPImageProcessorPil"
    image = load_image(shared_path("images", name))
    pixels = preprocess_image(shared_path("images", name))
    assert pixels.dtype == np.float32
    assert pixels.shape == (768, 768, 3)
    assert np.array_equal(pixels, reference(native_processor, image))


@needs_shared
@pytest.mark.parametrize("size", [(1, 1), (767, 769), (768, 768), (3, 2000), (2000, 3)])
@pytest.mark.parametrize("target", [(768, 768), (224, 384)])
def test_bit_exact_to_transformers_at_every_size(native_processor, size, target):
    noise = np.random.RandomState(1).randint(0, 256, (size[1], size[0], 3), np.uint8)
    options = {"size": {"height": target[0], "width": target[1]}}
    expected = reference(native_processor, Image.fromarray(noise), **options)
    assert np.array_equal(preprocess_image(noise, size=target), expected)


@needs_shared
@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_the_published_config_is_the_default(file):
    published = json.loads(shared_path("processor", file).read_text())
    assert ImageConfig.from_hf(published) == ImageConfig()


def test_config_drives_preprocessing():
    config = ImageConfig.from_hf({"size": 4, "do_normalize": False, "do_rescale": False})
    grey = np.full((3, 3), 7, np.uint8)
    assert (preprocess_image(grey, **dataclasses.asdict(config)) == np.float32(7)).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"size": {"shortest_edge": 224}}, "needs 'height' and 'width'"),
        ({"do_center_crop": True}, "centre crop"),
        ({"do_resize": False}, "no resize"),
        ({"size": 0}, "two positive integers"),
        ({"image_mean": [0.5]}, "one number per RGB channel"),
        ({"image_std": [1, 0, 1]}, "std must be positive"),
        ({"resample": 9}, "PIL's filters"),
    ],
)
def test_settings_we_would_get_wrong_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        ImageConfig.from_hf(config)


def test_a_bad_image_is_an_image_error():
    with pytest.raises(ImageError, match="does not exist"):
        preprocess_image("nowhere.png")
