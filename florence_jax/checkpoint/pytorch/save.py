"""Write a model's parameters as a PyTorch checkpoint of either naming."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from florence_jax.checkpoint.errors import CheckpointError
from florence_jax.checkpoint.files import (
    MAX_METADATA_BYTES,
    checkpoint_directory,
    contained_bytes,
    has_file,
)
from florence_jax.checkpoint.hub import METADATA_FILES
from florence_jax.checkpoint.param_tree import flatten, insert
from florence_jax.checkpoint.pytorch.config_files import completed_processor, torch_config
from florence_jax.checkpoint.pytorch.key_map import LM_HEAD, LOGITS_BIAS_PATH, SHARED, Naming
from florence_jax.checkpoint.pytorch.repo_config import read_config
from florence_jax.checkpoint.pytorch.safetensors import save_tensors
from florence_jax.checkpoint.pytorch.state_dict import torch_tensors
from florence_jax.checkpoint.resize_vocabulary import resized
from florence_jax.config import Florence2Config

_WEIGHTS = "model.safetensors"
_JSON_FILES = ("config.json", "generation_config.json")
# transformers pads the published vocabulary of 51289 to a multiple of this.
_ROW_MULTIPLE = 64


def save_torch(
    directory: Path,
    config: Florence2Config,
    params: Mapping[str, Any],
    naming: Naming,
    *,
    files: Path,
    pad_image_row: bool = True,
    overwrite: bool = False,
) -> dict[str, np.ndarray]:
    """Write `params` as model.safetensors with the JSON files of `naming`'s dialect.

    Parameters keep their dtypes.

    Args:
        directory: the directory to write; it appears as a whole when it is complete.
        config: the model's.
        params: nested dict of arrays, with the keys and shapes of `abstract_params(config)`.
        naming: "native" for transformers' class, "original" for Microsoft's code.
        files: directory with config.json, tokenizer and processor files.
        pad_image_row: in the native naming, pad a token table without a row for `<image>`, which
            transformers looks up, to a multiple of 64 as the published ones are.
        overwrite: replace an existing checkpoint.

    Returns:
        The tensors written, by name.

    Raises:
        CheckpointError: what cannot be written, and why.
    """
    if naming == "native" and pad_image_row:
        config, params = _with_image_row(config, params)
    # Told not to tie lm_head, PyTorch's classes tie none of the token table's other names either: a
    # name that is not in the file would be initialised at random.
    tied_names = not config.tie_word_embeddings
    tensors = {
        name: np.ascontiguousarray(array)
        for name, array in torch_tensors(params, naming, tied_names=tied_names)
    }
    dtypes = frozenset(array.dtype.name for array in tensors.values())
    written = torch_config(read_config(files), config, naming, dtypes)
    if config.image_token_id != Florence2Config.image_token_id:
        # The original code has no such token, but a later conversion to transformers needs its id.
        written[0]["image_token_id"] = config.image_token_id
    write_torch(directory, tensors, written, files=files, overwrite=overwrite)
    return tensors


def write_torch(
    directory: Path,
    tensors: Mapping[str, np.ndarray],
    json_files: tuple[Mapping[str, Any], Mapping[str, Any]],
    *,
    files: Path,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write tensors and JSON files as a PyTorch checkpoint; returns the names of its files.

    Args:
        directory: the directory to write; it appears as a whole when it is complete.
        tensors: name -> contiguous array.
        json_files: the content of config.json and of generation_config.json.
        files: directory with the tokenizer and processor files to copy, as far as it has them. A
            processor_config.json gets the `post_processor_config` that transformers needs.
        overwrite: replace an existing checkpoint.
    """
    with checkpoint_directory(directory, overwrite=overwrite) as new:
        for name in METADATA_FILES:
            if has_file(files, name):
                content = contained_bytes(files, name, MAX_METADATA_BYTES)
                (new / name).write_bytes(completed_processor(name, content))
        for name, fields in zip(_JSON_FILES, json_files, strict=True):
            (new / name).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        save_tensors(tensors, new / _WEIGHTS, {"format": "pt"})
        return tuple(sorted(path.name for path in new.iterdir()))


def _with_image_row(
    config: Florence2Config, params: Mapping[str, Any]
) -> tuple[Florence2Config, Mapping[str, Any]]:
    if config.image_token_id < config.text.vocab_size:
        return config, params
    rows = -(-(config.image_token_id + 1) // _ROW_MULTIPLE) * _ROW_MULTIPLE
    padded: dict[str, Any] = {}
    for path, leaf in flatten(params):
        if not getattr(leaf, "is_fully_addressable", True):
            raise CheckpointError(
                f"{path} is spread over several processes: gather the parameters first"
            )
        table = path in (SHARED, LM_HEAD, LOGITS_BIAS_PATH)
        insert(padded, path, resized(np.asarray(leaf), rows) if table else leaf)
    text = dataclasses.replace(config.text, vocab_size=rows)
    return dataclasses.replace(config, text=text), padded
