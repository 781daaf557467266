"""Both `config.json` dialects are read, written, and complained about."""

import contextlib
import copy
import dataclasses
import json

import pytest

from florence_jax import config as configs
from florence_jax.config import BartConfig, ConfigError, DaViTConfig, Florence2Config
from florence_jax.hf_config import config_warnings
from tests.shared_data import needs_shared, shared_path


def published(name):
    return json.loads(shared_path("original_configs", name, "config.json").read_text())


@needs_shared
@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("base", "base"),
        ("large", "large"),
        ("large_4k", "large-4k"),
        ("omniparser_icon_caption", "base"),
    ],
)
def test_published_configs_are_the_presets(name, preset):
    assert Florence2Config.from_hf(published(name)) == configs.PRESETS[preset]()


@needs_shared
def test_both_dialects_of_the_tiny_checkpoint_agree():
    native, original = (
        Florence2Config.from_hf(json.loads(shared_path("tiny", name, "config.json").read_text()))
        for name in ("native_hf", "original")
    )
    # The image placeholder exists in the native dialect alone.
    assert dataclasses.replace(native, image_token_id=original.image_token_id) == original


@pytest.mark.parametrize("preset", configs.PRESETS)
def test_native_round_trip(preset):
    config = configs.PRESETS[preset]()
    assert Florence2Config.from_hf(json.loads(json.dumps(config.to_hf("native")))) == config


@pytest.mark.parametrize("preset", ["base", "large", "large-4k"])
def test_original_round_trip(preset):
    config = configs.PRESETS[preset]()
    assert Florence2Config.from_hf(json.loads(json.dumps(config.to_hf("original")))) == config


@pytest.mark.parametrize("preset", configs.PRESETS)
def test_transformers_reads_what_we_write(preset):
    from transformers import Florence2Config as NativeConfig

    config = configs.PRESETS[preset]()
    theirs = NativeConfig(**config.to_hf("native"))
    assert Florence2Config.from_hf(theirs.to_dict()) == config


@needs_shared
def test_wrong_top_level_ids_are_reported_and_not_used():
    raw = published("omniparser_icon_caption")
    found = "\n".join(config_warnings(raw))
    for name, wrong, right in (("bos", 2, 0), ("eos", 1, 2), ("pad", 0, 1)):
        assert f"top-level {name}_token_id is {wrong}, text_config says {right}" in found
    text = Florence2Config.from_hf(raw).text
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == (0, 2, 1)


@needs_shared
def test_vision_model_type_is_not_required():
    raw = published("base")
    for value in ("", None):
        raw["vision_config"]["model_type"] = value
        assert Florence2Config.from_hf(raw) == configs.base()
        assert any("vision_config.model_type" in line for line in config_warnings(raw))
    del raw["vision_config"]["model_type"]
    assert Florence2Config.from_hf(raw) == configs.base()


@needs_shared
def test_every_missing_and_unsupported_key_is_named_at_once():
    raw = copy.deepcopy(published("base"))
    del raw["text_config"]["d_model"]
    del raw["vision_config"]["depths"]
    raw["text_config"]["normalize_before"] = True
    raw["text_config"]["activation_function"] = "relu"
    raw["vision_config"]["image_feature_source"] = ["last_frame"]
    with pytest.raises(ConfigError) as caught:
        Florence2Config.from_hf(raw)
    message = str(caught.value)
    for part in (
        "5 problem(s)",
        "text_config.d_model is missing",
        "vision_config.depths is missing",
        "text_config.normalize_before is True",
        "text_config.activation_function is 'relu'",
        "vision_config.image_feature_source is ['last_frame']",
    ):
        assert part in message


@pytest.mark.parametrize(
    "raw", [{}, {"text_config": 3, "vision_config": []}, {"model_type": "bert"}]
)
def test_something_else_is_not_a_florence2(raw):
    with pytest.raises(ConfigError, match=r"is this the config\.json of"):
        Florence2Config.from_hf(raw)


def test_values_of_the_wrong_type_are_config_errors():
    raw = configs.base().to_hf("native")
    raw["text_config"]["d_model"] = "768"
    with pytest.raises(ConfigError, match="d_model is '768', expected an integer of at least 1"):
        Florence2Config.from_hf(raw)


JUNK = [None, True, -1, 0, 1.5, float("nan"), "text", [], [1, "x"], {}, [[1]], {"type": 3}]


@needs_shared
@pytest.mark.parametrize("name", ["base", "omniparser_icon_caption"])
def test_any_value_anywhere_reads_or_is_a_config_error(name):
    """No mutation of a published config raises anything but ConfigError."""
    raw = published(name)
    for section in (raw, raw["text_config"], raw["vision_config"]):
        for key, value in list(section.items()):
            for junk in JUNK:
                section[key] = junk
                with contextlib.suppress(ConfigError):
                    Florence2Config.from_hf(raw)
                config_warnings(raw)
            section[key] = value
    assert Florence2Config.from_hf(raw) == configs.base()


def test_sizes_are_validated_together():
    with pytest.raises(ConfigError) as caught:
        DaViTConfig(depths=(1, 1), num_heads=(3, 8, 16, 32))
    message = str(caught.value)
    for part in ("depths has 2 entries", "num_heads entry 3 does not divide"):
        assert part in message
    with pytest.raises(ConfigError, match=r"window_size is 0, .*\n.*drop_path_rate is 1.0"):
        DaViTConfig(window_size=0, drop_path_rate=1.0)
    with pytest.raises(ConfigError, match="eos_token_id is 9, outside the vocabulary of 8"):
        BartConfig(vocab_size=8, eos_token_id=9)


def test_image_tokens():
    config = configs.base()
    assert config.num_image_tokens(768, 768) == 577
    assert config.num_image_tokens(768, 768, frames=4) == 580
    assert config.num_image_tokens(1600, 1600) == 2501
    with pytest.raises(ValueError, match="position table holds 50 x 50"):
        config.num_image_tokens(1632, 768)


def test_the_original_dialect_refuses_what_it_cannot_say():
    config = dataclasses.replace(configs.base(), vision=DaViTConfig(mlp_ratio=2.0))
    with pytest.raises(
        ConfigError, match=r"vision.mlp_ratio is 2.0; the original dialect has no key"
    ):
        config.to_hf("original")
