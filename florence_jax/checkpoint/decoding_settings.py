"""Decoding settings in the form of transformers' `generation_config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from florence_jax.generation_config import GenerationConfig

# Always written, because readers differ in what they assume where these are absent.
_ALWAYS = (
    "num_beams",
    "early_stopping",
    "no_repeat_ngram_size",
    "length_penalty",
    "bos_token_id",
    "pad_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)


def settings_json(settings: GenerationConfig) -> dict[str, Any]:
    """The content of generation_config.json for `settings`.

    It holds the settings that differ from the defaults of `GenerationConfig`, and those for which
    readers assume different defaults.
    """
    default = GenerationConfig()
    return {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if field.name in _ALWAYS or getattr(settings, field.name) != getattr(default, field.name)
    }


def decoding_settings(
    config: Mapping[str, Any], generation: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The settings that a checkpoint decodes with, resolved from both of its files.

    Args:
        config: the content of config.json, in either dialect.
        generation: the content of generation_config.json, None where there is none.
    """
    # Unsupported settings stay in the files; decoding with them raises an error.
    return settings_json(GenerationConfig.from_hf(config, generation, strict=False))
