"""Decoding settings: checks, defaults, and what published checkpoints say."""

from __future__ import annotations

import json

import pytest

from florence_jax.generation import PUBLISHED, GenerationConfig
from florence_jax.generation_keys import unknown_keys
from tests.shared_data import needs_shared, shared_path


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 0}, "num_beams must be an integer of at least 1, got 0"),
        ({"num_beams": 100_000}, "num_beams must be at most 1024, got 100000"),
        ({"num_beams": 10**5000}, "num_beams must be at most 1024, got a number of 16610 bits"),
        ({"max_new_tokens": 10**9}, "max_new_tokens must be at most 1048576"),
        ({"num_return_sequences": 10**6, "do_sample": True}, "num_return_sequences must be at mo"),
        ({"top_k": 1 << 40}, "top_k must be at most 16777216"),
        ({"eos_token_id": 1 << 31}, "eos_token_id must be at most 16777216"),
        ({"length_penalty": 1e300}, r"length_penalty must be a finite number within 1e\+06"),
        ({"num_beams": 2.0}, "num_beams"),
        ({"num_beams": True}, "num_beams"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"min_new_tokens": -1}, "min_new_tokens"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, r"min_new_tokens \(9\) is above"),
        ({"early_stopping": "always"}, "early_stopping must be True, False or"),
        ({"do_sample": 1}, "do_sample"),
        ({"temperature": 0.0}, "do_sample=False"),
        ({"temperature": float("nan")}, "temperature must be a finite number"),
        ({"length_penalty": float("inf")}, "length_penalty"),
        ({"repetition_penalty": -1.0}, "repetition_penalty must be a finite number above 0"),
        ({"top_p": 1.5}, "top_p must be a finite number above 0 and at most 1"),
        ({"top_k": -1}, "top_k"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
        ({"num_return_sequences": 2}, "greedy decoding has one answer"),
        ({"num_return_sequences": 4, "num_beams": 3}, "above num_beams"),
        ({"eos_token_id": -1}, "eos_token_id"),
        ({"forced_bos_token_id": "eos"}, 'forced_bos_token_id must be a token id, None or "bos"'),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**settings)


@needs_shared
@pytest.mark.parametrize("name", ["base", "large", "large_4k", "omniparser_icon_caption"])
def test_published_checkpoints_decode_alike(name):
    """Large's generation_config.json says early_stopping False; omniparser's ids are wrong."""
    assert read(shared_path("original_configs", name)) == PUBLISHED


@needs_shared
@pytest.mark.parametrize("name", ["original", "native_hf"])
def test_tiny_checkpoints_decode_as_published(name):
    assert read(shared_path("tiny", name)) == PUBLISHED


def test_precedence():
    def settings(text, generation):
        return GenerationConfig.from_hf({"text_config": text}, generation)

    assert settings({"num_beams": 5}, {"num_beams": 2}).num_beams == 5
    assert settings({"num_beams": 1}, {"num_beams": 2}).num_beams == 2  # 1 is only a default
    assert settings({"num_beams": 1}, None).num_beams == 1
    assert settings({}, None).num_beams == 3
    assert settings({"eos_token_id": 2}, {"eos_token_id": 1}).eos_token_id == 2
    assert settings({}, {"eos_token_id": [2]}).eos_token_id == 2
    assert settings({"max_length": 20}, {"max_new_tokens": 9}).max_new_tokens == 9
    assert settings({"max_length": 20}, {"max_length": 30, "min_length": 5}) == GenerationConfig(
        **{**vars(PUBLISHED), "max_new_tokens": 29, "min_new_tokens": 4}
    )


def test_limits_of_text_config_hold_where_there_are_no_others():
    """The original's `generate` reads them there; only max_length is a serialised default."""
    text = {"text_config": {"max_length": 20, "min_length": 5, "max_new_tokens": 40}}
    config = GenerationConfig.from_hf(text, {})
    assert (config.min_new_tokens, config.max_new_tokens) == (4, 40)
    config = GenerationConfig.from_hf(text, {"min_new_tokens": 2, "max_length": 31})
    assert (config.min_new_tokens, config.max_new_tokens) == (2, 30)
    with pytest.raises(ValueError, match=r"text_config\.min_length must be an integer"):
        GenerationConfig.from_hf({"text_config": {"min_length": "5"}}, {})


@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token_id": [2, 1 << 30]},
        {"suppress_tokens": [1 << 30]},
        {"bad_words_ids": [[5], [6, 1 << 30]]},
        {"sequence_bias": [[[1 << 30], 1.0]]},
        {"exponential_decay_length_penalty": [1 << 30, 1.1]},
    ],
)
def test_numbers_in_lists_are_bounded(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))}.* must be at most"):
        GenerationConfig(**settings)


def test_several_eos_ids_are_kept():
    """text_config's single id, which every file has, does not hide them."""
    several = {"eos_token_id": [2, 50118]}
    assert GenerationConfig.from_hf({}, several).eos_token_id == (2, 50118)
    text = {"text_config": {"eos_token_id": 2, "forced_eos_token_id": 2}}
    config = GenerationConfig.from_hf(text, several)
    assert (config.eos_token_id, config.forced_eos_token_id) == ((2, 50118), 2)
    text = {"text_config": {"eos_token_id": [2, 7, 2], "forced_eos_token_id": [2, 7]}}
    config = GenerationConfig.from_hf(text, {"eos_token_id": 2})
    assert (config.eos_token_id, config.forced_eos_token_id) == ((2, 7), (2, 7))
    assert hash(config) == hash(GenerationConfig(**vars(config)))
    for wrong in ([], [2, -1], [2, "x"], "</s>", 2.0):
        with pytest.raises(ValueError, match="eos_token_id"):
            GenerationConfig(eos_token_id=wrong)  # pyright: ignore[reportArgumentType]


def test_supported_settings_are_read():
    given = {
        "suppress_tokens": [5, 6],
        "begin_suppress_tokens": [7],
        "bad_words_ids": [[4], [5, 6]],
        "sequence_bias": [[[8, 9], -1.5]],
        "exponential_decay_length_penalty": [5, 1.2],
        "min_p": 0.05,
        "typical_p": 0.9,
        "epsilon_cutoff": 3e-4,
        "eta_cutoff": 2e-3,
        "renormalize_logits": True,
    }
    config = GenerationConfig.from_hf({}, given)
    assert config.bad_words_ids == ((4,), (5, 6))
    assert config.sequence_bias == (((8, 9), -1.5),)
    assert {name: getattr(config, name) for name in given} == {
        name: getattr(GenerationConfig(**given), name) for name in given
    }
    assert GenerationConfig.from_hf({"text_config": given}, None) == config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("encoder_no_repeat_ngram_size", 3),
        ("encoder_repetition_penalty", 1.2),
        ("diversity_penalty", 0.5),
        ("num_beam_groups", 3),
        ("top_h", 0.4),
        ("guidance_scale", 1.5),
        ("penalty_alpha", 0.6),
        ("prompt_lookup_num_tokens", 3),
        ("constraints", ["x"]),
        ("force_words_ids", [[3]]),
        ("stop_strings", ["."]),
        ("watermarking_config", {"bias": 2.5}),
        ("remove_invalid_values", True),
        ("max_time", 2.0),
        ("forced_decoder_ids", [[1, 5]]),
        ("assistant_early_exit", 4),
        ("dola_layers", "high"),
        ("token_healing", True),
    ],
)
def test_what_would_change_tokens_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"generation_config.json: {name}="):
        GenerationConfig.from_hf({}, {name: value})
    with pytest.raises(ValueError, match=f"text_config.{name}="):
        GenerationConfig.from_hf({"text_config": {name: value}}, None)
    assert GenerationConfig.from_hf({}, {name: value}, strict=False) == PUBLISHED
    assert GenerationConfig.from_hf({}, {name: None}) == PUBLISHED


def test_all_defaults_of_transformers_are_harmless():
    from transformers import GenerationConfig as TheirConfig

    theirs = TheirConfig()
    defaults = {**theirs.to_dict(), **theirs._get_default_generation_params()}
    defaults = {name: v for name, v in defaults.items() if name not in ("max_length", "num_beams")}
    config = GenerationConfig.from_hf({}, defaults | {"output_scores": True, "use_cache": False})
    assert vars(config) == vars(PUBLISHED) | {
        "early_stopping": False,
        "no_repeat_ngram_size": 0,
    }


def test_no_setting_of_transformers_is_unknown():
    """A new one is refused, supported or harmless: decide when transformers gains it."""
    from transformers import GenerationConfig as TheirConfig

    ours = frozenset(vars(PUBLISHED)) | {"max_length", "min_length"}
    assert unknown_keys(dict.fromkeys(vars(TheirConfig()), 1), ours) == []


def test_unknown_keys_are_warned_of():
    with pytest.warns(UserWarning, match="no decoding settings: num_beam; they are ignored"):
        GenerationConfig.from_hf({}, {"num_beam": 3, "use_cache": True})


def read(directory) -> GenerationConfig:
    config = json.loads((directory / "config.json").read_text())
    path = directory / "generation_config.json"
    generation = json.loads(path.read_text()) if path.exists() else None
    return GenerationConfig.from_hf(config, generation)
