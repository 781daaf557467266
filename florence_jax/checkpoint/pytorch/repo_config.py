"""Read the JSON files beside the weights, and list what is odd about them."""

import dataclasses
from pathlib import Path
from typing import Any

from florence_jax.checkpoint.errors import CheckpointError, clip
from florence_jax.checkpoint.files import has_file, read_json_object
from florence_jax.hf_config import config_warnings

TOKENIZER_FILES = ("tokenizer.json",)
# The slow tokenizer's pair does as well as tokenizer.json.
_SLOW_TOKENIZER_FILES = ("vocab.json", "merges.txt")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")

# The key of the stage widths in the original and the native dialect. A derived model may call
# itself what it likes as long as its image encoder is Florence-2's.
_DAVIT_WIDTHS = ("dim_embed", "embed_dim")

_DECODING_KEYS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "num_beams",
    "early_stopping",
    "no_repeat_ngram_size",
    "length_penalty",
)


@dataclasses.dataclass(frozen=True)
class RepositoryConfig:
    """What a checkpoint directory says about itself, unchanged.

    Attributes:
        config: config.json, in either dialect; see `Florence2Config.from_hf`.
        generation: generation_config.json, None where there is none.
        preprocessor: preprocessor_config.json, or processor_config.json's, None where absent.
        has_tokenizer: tokenizer.json, or vocab.json with merges.txt, is there.
        warnings: what is odd but harmless, one sentence each.
    """

    config: dict[str, Any]
    generation: dict[str, Any] | None
    preprocessor: dict[str, Any] | None
    has_tokenizer: bool
    warnings: tuple[str, ...]


def read_config(directory: str | Path) -> RepositoryConfig:
    """Read the JSON files of a checkpoint directory; its weights are not touched.

    Raises:
        CheckpointError: config.json is missing or not a Florence-2's, or a JSON file is malformed.
    """
    directory = Path(directory)
    config = read_json_object(directory, "config.json")
    if config is None and has_file(directory, "adapter_config.json"):
        raise CheckpointError(
            f"{directory} is a PEFT adapter: load it with florence_jax.load or Florence2Pipeline, "
            "or merge it with python -m convert.merge_lora"
        )
    if config is None:
        raise CheckpointError(
            f"{directory} has no config.json, which gives the model's sizes: download it from the "
            "repository that the weights come from (the base model's, for a fine-tune)"
        )
    model_type = config.get("model_type")
    vision = config.get("vision_config")
    is_davit = isinstance(vision, dict) and not vision.keys().isdisjoint(_DAVIT_WIDTHS)
    if model_type not in (None, "", "florence2") and not is_davit:
        raise CheckpointError(
            f"{directory / 'config.json'}: model_type is {clip(repr(model_type))}, expected "
            "'florence2': this is another model's checkpoint"
        )
    generation = read_json_object(directory, "generation_config.json")
    processors = [read_json_object(directory, name) for name in PROCESSOR_FILES]
    preprocessor = next((found for found in processors if found is not None), None)
    has_tokenizer = any(
        all(has_file(directory, name) for name in names)
        for names in (TOKENIZER_FILES, _SLOW_TOKENIZER_FILES)
    )
    # The tokenizer's reader opens it too: refused here where it leads out of the directory.
    has_file(directory, "added_tokens.json")
    warnings = [f"config.json: {warning}" for warning in config_warnings(config)]
    warnings += _decoding_warnings(config, generation)
    if model_type != "florence2":
        warnings.append(
            f"config.json: model_type is {clip(repr(model_type))} instead of 'florence2'"
        )
    if not has_tokenizer:
        warnings.append("no tokenizer files: the base model's tokenizer applies")
    if preprocessor is None:
        warnings.append("no preprocessor_config.json: the base model's preprocessing applies")
    return RepositoryConfig(config, generation, preprocessor, has_tokenizer, tuple(warnings))


def _decoding_warnings(config: dict[str, Any], generation: dict[str, Any] | None) -> list[str]:
    text = config.get("text_config")
    if generation is None or not isinstance(text, dict):
        return []
    return [
        f"generation_config.json: {key} is {clip(repr(generation[key]))}, text_config says "
        f"{clip(repr(text[key]))}"
        for key in _DECODING_KEYS
        if key in generation and key in text and generation[key] != text[key]
    ]
