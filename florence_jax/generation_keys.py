"""Keys of `generation_config.json` that `GenerationConfig` has no field for.

Each is one of three: a setting that would change tokens and is refused by name, a setting that
changes none and may stand there, or a key that transformers does not know either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Settings of transformers that would change tokens -> the values that ask for nothing. None does so
# everywhere.
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
