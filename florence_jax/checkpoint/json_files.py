"""The JSON and tokenizer files of a checkpoint to be written, in the dialect of its naming."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from florence_jax.checkpoint.hub import BUNDLED, METADATA_FILES
from florence_jax.checkpoint.pytorch.key_map import Naming
from florence_jax.checkpoint.repository import (
    DECODING_KEYS,
    MAX_METADATA_BYTES,
    SECTION,
    RepositoryConfig,
    contained_bytes,
)
from florence_jax.config import Florence2Config
from florence_jax.generation_config import GenerationConfig

_DTYPE_KEY: Mapping[Naming, str] = {"original": "torch_dtype", "native": "dtype"}
_PROCESSOR = "processor_config.json"
IMAGE_TOKEN = "<image>"
# transformers' `Florence2Processor` reads the rules that parse answers from here, and fails without
# them, as many fine-tunes are. They are the same for every Florence-2.
_POST_PROCESSOR = "post_processor_config"


def torch_config(
    repository: RepositoryConfig,
    config: Florence2Config,
    naming: Naming,
    dtypes: Collection[str],
    *,
    ties_embed_tokens: bool | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(config.json, generation_config.json) for parameters of `config` in `naming`.

    Files that are in that dialect already stay as they are, but for the vocabulary, the tying and
    the dtype of the weights. In the other dialect they are written anew; the decoding settings,
    which the original keeps in `text_config` and transformers in generation_config.json, go along.

    Args:
        repository: the files of the source.
        config: the exported model.
        naming: the dialect to write.
        dtypes: the dtypes of the exported tensors.
        ties_embed_tokens: text_config's own `tie_word_embeddings`.
    """
    published = {key: value for key, value in repository.config.items() if key != SECTION}
    settings = decoding_settings(repository)
    if dialect(published) == naming:
        written = with_vocabulary(published, config.text.vocab_size)
        generation = settings if repository.generation is None else dict(repository.generation)
    else:
        written = config.to_hf(naming)
        generation = {**(repository.generation or {}), **settings}
        generation.pop("_from_model_config", None)
        if naming == "original":
            written["text_config"] |= settings
    if naming == "native":
        # It names the original's remote code, for which transformers would ask before anything.
        written.pop("auto_map", None)
    ties = config.tie_word_embeddings
    ties_text = ties if ties_embed_tokens is None else ties_embed_tokens
    flags = ((written, ties), (written["text_config"], ties_text))
    for section, ties in flags:
        if section.get("tie_word_embeddings", True) != ties:
            section["tie_word_embeddings"] = ties
    if len(dtypes) == 1:
        _set_dtype(written, next(iter(dtypes)), naming)
    return written, generation


def dialect(config: Mapping[str, Any]) -> Naming:
    """The dialect of a published config.json."""
    return "original" if "dim_embed" in config["vision_config"] else "native"


def with_rows(config: Florence2Config, rows: int) -> Florence2Config:
    """`config` with a vocabulary of `rows`."""
    return dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=rows))


def _set_dtype(written: dict[str, Any], dtype: str, naming: Naming) -> None:
    keys = tuple(_DTYPE_KEY.values())
    if not any(key in written for key in keys):
        written[_DTYPE_KEY[naming]] = dtype
    for section in (written, written["text_config"], written["vision_config"]):
        for key in keys:
            if section.get(key) is not None:
                section[key] = dtype


def post_processor_config() -> dict[str, Any]:
    """The rules that parse answers, as in the checkpoints that transformers' authors converted."""
    return json.loads((BUNDLED["shapes"] / _PROCESSOR).read_text(encoding="utf-8"))[_POST_PROCESSOR]


def tokenizer_config(max_length: int) -> dict[str, Any]:
    """The tokenizer_config.json with which transformers loads a tokenizer that has `<image>`."""
    return {
        "add_prefix_space": False,
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "extra_special_tokens": {"image_token": IMAGE_TOKEN},
        "image_token": IMAGE_TOKEN,
        "mask_token": "<mask>",
        "model_max_length": max_length,
        "pad_token": "<pad>",
        "processor_class": "Florence2Processor",
        "sep_token": "</s>",
        "tokenizer_class": "BartTokenizer",
        "trim_offsets": True,
        "unk_token": "<unk>",
    }


def copied_files(directory: Path) -> dict[str, bytes]:
    """Name -> content of the JSON, tokenizer and processor files that `directory` has.

    A processor_config.json gets the `post_processor_config` that transformers needs.
    """
    copied = {}
    for name in METADATA_FILES:
        with contextlib.suppress(FileNotFoundError):
            copied[name] = contained_bytes(directory, name, MAX_METADATA_BYTES)
    if _PROCESSOR in copied:
        with contextlib.suppress(ValueError):  # its reader reports what is wrong with it
            fields = json.loads(copied[_PROCESSOR])
            if isinstance(fields, dict) and not fields.get(_POST_PROCESSOR):
                rules = {_POST_PROCESSOR: post_processor_config()}
                copied[_PROCESSOR] = dump_json(fields | rules)
    return copied


def dump_json(value: Any) -> bytes:
    """The content of a JSON file, as every checkpoint's are written."""
    return json.dumps(value, indent=2).encode() + b"\n"


def with_vocabulary(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """A copy of config.json in which every `vocab_size` is `rows`."""
    changed = json.loads(json.dumps(config))
    for section in (changed, changed.get("text_config")):
        if isinstance(section, dict) and "vocab_size" in section:
            section["vocab_size"] = rows
    return changed


def settings_json(settings: GenerationConfig) -> dict[str, Any]:
    """The content of generation_config.json for `settings`.

    It holds the settings that differ from the defaults of `GenerationConfig`, and those for which
    readers assume different defaults.
    """
    default = GenerationConfig()
    return {
        name: value
        for name, value in vars(settings).items()
        if name in DECODING_KEYS or value != getattr(default, name)
    }


def decoding_settings(repository: RepositoryConfig) -> dict[str, Any]:
    """The settings that a checkpoint decodes with, resolved from both of its files."""
    # Unsupported settings stay in the files; decoding with them raises an error.
    settings = GenerationConfig.from_hf(repository.config, repository.generation, strict=False)
    return settings_json(settings)
