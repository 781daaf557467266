"""The JSON files of an exported checkpoint, in the dialect of its naming."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from typing import Any

from florence_jax.checkpoint.decoding_settings import decoding_settings
from florence_jax.checkpoint.hub import BUNDLED
from florence_jax.checkpoint.native.reader import SECTION
from florence_jax.checkpoint.pytorch.key_map import Naming
from florence_jax.checkpoint.pytorch.repo_config import RepositoryConfig
from florence_jax.checkpoint.resize_vocabulary import with_vocabulary
from florence_jax.config import Florence2Config

_DTYPE_KEY: Mapping[Naming, str] = {"original": "torch_dtype", "native": "dtype"}
_PROCESSOR = "processor_config.json"
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
    settings = decoding_settings(published, repository.generation)
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


def completed_processor(name: str, content: bytes) -> bytes:
    """The content of a checkpoint's file `name`; a processor_config.json gets missing rules."""
    if name != _PROCESSOR:
        return content
    try:
        fields = json.loads(content)
    except ValueError:
        return content  # its reader reports what is wrong with it
    if not isinstance(fields, dict) or fields.get(_POST_PROCESSOR):
        return content
    fields[_POST_PROCESSOR] = post_processor_config()
    return json.dumps(fields, indent=2).encode() + b"\n"
