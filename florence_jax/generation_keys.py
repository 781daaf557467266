"""Keys of `generation_config.json` that `GenerationConfig` has no field for.

Such a key is one of three: a setting that would change tokens,
which is refused by name; a setting that changes none, which is ignored; or a key that transformers
does not know either.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

TOKEN_IDS = (
    "decoder_start_token_id",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
# Settings of transformers that would change tokens -> the values that have no effect. None never
# has one.
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "assistant_early_exit": (),
    "assistant_model": (),
    "constraints": ([],),
    "custom_generate": (),
    "diversity_penalty": (0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "force_bos_token_to_be_generated": (False,),
    "force_words_ids": ([],),
    "forced_decoder_ids": ([],),
    "guidance_scale": (1,),
    "is_assistant": (False,),
    "max_time": (),
    "num_beam_groups": (1,),
    "penalty_alpha": (0,),
    "prompt_lookup_num_tokens": (),
    "remove_invalid_values": (False,),
    "speculation_type": (),
    "stop_strings": ([],),
    "token_healing": (False,),
    "top_h": (),
    "use_mtp": (False,),
    "watermarking_config": (),
}
# Memory, speed, what is returned beside the tokens, and bookkeeping.
HARMLESS = frozenset(
    {
        "_commit_hash",
        "_from_model_config",
        "assistant_confidence_threshold",
        "assistant_ensemble_weight",
        "assistant_lookbehind",
        "cache_config",
        "cache_implementation",
        "compile_config",
        "continuous_batching_config",
        "disable_compile",
        "generation_kwargs",
        "low_memory",
        "max_cache_len",
        "max_matching_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "prefill_chunk_size",
        "return_dict_in_generate",
        "return_legacy_cache",
        "target_lookbehind",
        "transformers_version",
        "use_cache",
    }
)


def check_keys(
    text_config: Mapping[str, Any], generation_config: Mapping[str, Any], supported: frozenset[str]
) -> None:
    """Refuse settings that would change tokens, and warn of keys that no decoder knows.

    Raises:
        ValueError: lists the settings that are not supported.
    """
    unsupported = list(unsupported_settings(text_config, generation_config))
    if unsupported:
        raise ValueError(
            f"{', '.join(unsupported)}: florence-jax does not support this, and without it the "
            "tokens would be others than transformers'; remove it from the file to decode without"
        )
    unknown = unknown_keys(generation_config, supported)
    if unknown:
        warnings.warn(
            f"generation_config.json has keys that are no decoding settings: {', '.join(unknown)}; "
            "they are ignored, as they are by transformers",
            stacklevel=3,
        )


def unsupported_settings(
    text_config: Mapping[str, Any], generation_config: Mapping[str, Any]
) -> Iterator[str]:
    """Each setting that would change tokens, as "generation_config.json: max_time=5"."""
    sources = (
        ("config.json: text_config.", text_config),
        ("generation_config.json: ", generation_config),
    )
    for place, source in sources:
        for name, neutral in UNSUPPORTED.items():
            value = source.get(name)
            if value is not None and value not in neutral:
                yield f"{place}{name}={value!r}"


def unknown_keys(generation_config: Mapping[str, Any], supported: frozenset[str]) -> list[str]:
    """The keys with a value that no version of transformers reads, sorted."""
    known = supported | HARMLESS | UNSUPPORTED.keys()
    return sorted(
        name for name, value in generation_config.items() if name not in known and value is not None
    )
