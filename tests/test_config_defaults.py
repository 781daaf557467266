"""What absent keys mean: the reference classes' own defaults."""

import numpy as np
import pytest
from PIL import Image

from florence_jax import config as configs
from florence_jax.config import Florence2Config
from florence_jax.generation import GenerationConfig
from florence_jax.generation_config import TRANSFORMERS_DEFAULTS
from florence_jax.hf_config import _TEXT_OPTIONAL, _VISION_OPTIONAL
from florence_jax.processing import ImageConfig, preprocess_image


def minimal(dialect):
    """A config.json with no key but those that must be there."""
    written = configs.base().to_hf(dialect)
    text = {k: v for k, v in written["text_config"].items() if k not in _TEXT_OPTIONAL}
    vision = {k: v for k, v in written["vision_config"].items() if k not in _VISION_OPTIONAL}
    for key in ("max_position_embeddings", "max_temporal_embeddings"):
        vision.pop(key, None)
    for key in ("image_pos_embed", "visual_temporal_embedding", "image_feature_source"):
        vision.pop(key, None)
    for key in ("forced_eos_token_id", "init_std", "tie_word_embeddings", "activation_function"):
        text.pop(key, None)
    vision.pop("activation_function", None)
    return {"model_type": "florence2", "text_config": text, "vision_config": vision}


def test_absent_keys_are_what_transformers_takes():
    from transformers import Florence2Config as TheirConfig

    theirs = TheirConfig(**minimal("native"))
    ours = Florence2Config.from_hf(minimal("native"))
    assert ours == Florence2Config.from_hf(theirs.to_dict())
    for key in _TEXT_OPTIONAL:
        assert getattr(ours.text, key) == getattr(theirs.text_config, key), key
    # Transformers has one schedule of stochastic depth, by halves of a block.
    assert ours.vision.drop_path_per_block is False
    for key in {*_VISION_OPTIONAL} - {"drop_path_per_block"}:
        assert getattr(ours.vision, key) == getattr(theirs.vision_config, key), key
    assert (ours.text.attention_dropout, ours.text.activation_dropout) == (0.0, 0.0)
    assert ours.text.dropout == 0.1
    # The original's classes have the same defaults, copied from BART's.
    assert Florence2Config.from_hf(minimal("original")) == ours


def test_absent_decoding_settings_are_what_transformers_takes():
    from transformers import GenerationConfig as TheirConfig

    theirs = TheirConfig()._get_default_generation_params()
    default = GenerationConfig()
    for name, value in TRANSFORMERS_DEFAULTS.items():
        assert theirs.get(name, value or None) == (value or theirs.get(name)), name
        assert getattr(default, name) == value, name


@pytest.mark.parametrize("absent", ["image_mean", "image_std", "resample", "rescale_factor"])
def test_absent_image_settings_are_what_transformers_takes(absent):
    from transformers import CLIPImageProcessor

    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "do_center_crop": False,
        "size": {"height": 40, "width": 32},
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.4],
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    del settings[absent]
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    image = Image.fromarray(pixels)
    expected = CLIPImageProcessor(**settings)(image, return_tensors="np")["pixel_values"][0]
    config = ImageConfig.from_hf(settings)
    ours = preprocess_image(
        image,
        size=config.size,
        mean=config.mean,
        std=config.std,
        resample=config.resample,
        rescale=config.rescale,
    )
    # Its resizing rounds to 8 bits; the settings that are compared move pixels by tenths.
    np.testing.assert_allclose(ours, np.moveaxis(expected, 0, -1), atol=0.05)


def test_a_crop_that_is_not_switched_off_is_refused():
    config = {"image_processor_type": "CLIPImageProcessor", "size": {"height": 8, "width": 8}}
    with pytest.raises(ValueError, match="set do_center_crop to false"):
        ImageConfig.from_hf(config)


@pytest.mark.parametrize("size", [{}, {"size": 64}])
def test_a_shorter_side_is_no_square(size):
    """CLIP keeps the aspect for one number, and its own default of 224 is one."""
    config = {"image_processor_type": "CLIPImageProcessor", "do_center_crop": False} | size
    with pytest.raises(ValueError, match="Florence-2 needs 'height' and 'width'"):
        ImageConfig.from_hf(config)
