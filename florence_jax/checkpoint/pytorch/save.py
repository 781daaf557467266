"""Write a model's parameters as a PyTorch checkpoint of either naming."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from florence_jax.checkpoint.errors import CheckpointError, ErrorCollector
from florence_jax.checkpoint.json_files import copied_files, dump_json, torch_config, with_rows
from florence_jax.checkpoint.param_tree import flatten, unflatten
from florence_jax.checkpoint.pytorch.key_map import (
    DUPLICATE_PATHS,
    LM_HEAD,
    LOGITS_BIAS_PATH,
    RULES,
    SHARED,
    Match,
    Naming,
    match_path,
)
from florence_jax.checkpoint.repository import checkpoint_directory, read_config
from florence_jax.config import Florence2Config

_WEIGHTS = "model.safetensors"
_JSON_FILES = ("config.json", "generation_config.json")
# transformers pads the published vocabulary of 51289 to a multiple of this.
_ROW_MULTIPLE = 64
_CHUNK_ROWS = 4096


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
    written = dict(zip(_JSON_FILES, map(dump_json, json_files), strict=True))
    with checkpoint_directory(directory, overwrite=overwrite) as new:
        for name, content in (copied_files(files) | written).items():
            (new / name).write_bytes(content)
        save_tensors(tensors, new / _WEIGHTS, {"format": "pt"})
        return tuple(sorted(path.name for path in new.iterdir()))


def save_tensors(
    tensors: Mapping[str, np.ndarray], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file of contiguous arrays.

    Raises:
        OSError: the disk is full, or the system refuses for another reason.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, metadata=dict(metadata or {}))
        # The library makes a file that only its owner may read.
        path.chmod(mode)
    except SafetensorError as error:
        # The library wraps the system's error into its own and keeps the number in the text.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), str(error), str(path)) from error


def torch_tensors(
    params: Mapping[str, Any], naming: Naming, *, tied_names: bool = False
) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of `params` under its name in `naming`, one at a time, in the same dtype.

    The arrays are views in torch's layout, often not contiguous: copy before writing their bytes.
    The original naming always has `final_logits_bias`: zeros where the parameters have none.

    Args:
        params: nested dict of arrays, as `load_checkpoint` returns it.
        naming: "original" or "native".
        tied_names: also give the token table under its other names (`embed_tokens`, and `lm_head`
            in a tied model), as a `.bin` and a strict `load_state_dict` have them; safetensors
            files have it once.

    Raises:
        CheckpointError: lists the parameters without a name in `naming`, before any is given.
    """
    leaves = dict(flatten(params))
    problems = ErrorCollector()
    matches: dict[str, Match] = {}
    for path in leaves:
        match = match_path(path)
        if match is None:
            problems.add("parameters that are not a Florence-2's", path)
        elif match.name(naming) is None:
            problems.add(f"parameters that the {naming} model has no tensor for", path)
            problems.hint("use the original naming, or set the parameter to zero and drop it")
        else:
            matches[path] = match
    if SHARED not in leaves:
        problems.add("missing parameters", SHARED)
    problems.raise_if_any(f"the parameters have no {naming} form")
    return _tensors(leaves, matches, naming, tied_names)


def _tensors(
    leaves: Mapping[str, Any], matches: dict[str, Match], naming: Naming, tied_names: bool
) -> Iterator[tuple[str, np.ndarray]]:
    for path, match in matches.items():
        yield _named(match, naming, np.asarray(leaves[path]))
    table = np.asarray(leaves[SHARED])
    bias = match_path(LOGITS_BIAS_PATH)
    if bias is not None and LOGITS_BIAS_PATH not in leaves and bias.name(naming) is not None:
        yield _named(bias, naming, np.zeros(table.shape[:1], table.dtype))
    if tied_names:
        for rule in RULES:
            if rule.ours in DUPLICATE_PATHS and rule.ours not in leaves:
                yield _named(Match(rule, ()), naming, table)


def _named(match: Match, naming: Naming, array: np.ndarray) -> tuple[str, np.ndarray]:
    name = match.name(naming)
    assert name is not None  # torch_tensors has refused parameters without one
    return name, match.rule.transform(naming).to_torch(array)


def _with_image_row(
    config: Florence2Config, params: Mapping[str, Any]
) -> tuple[Florence2Config, Mapping[str, Any]]:
    if config.image_token_id < config.text.vocab_size:
        return config, params
    rows = -(-(config.image_token_id + 1) // _ROW_MULTIPLE) * _ROW_MULTIPLE
    padded = dict(flatten(params))
    for path, leaf in padded.items():
        if not getattr(leaf, "is_fully_addressable", True):
            raise CheckpointError(
                f"{path} is spread over several processes: gather the parameters first"
            )
        if path in (SHARED, LM_HEAD, LOGITS_BIAS_PATH):
            padded[path] = resized(np.asarray(leaf), rows)
    return with_rows(config, rows), unflatten(padded)


def resized(table: np.ndarray, rows: int) -> np.ndarray:
    """A copy of float[V, ...] `table` with its first `rows` rows, or padded to `rows`.

    A new row is the mean of all others (float64, rounded to the table's dtype): its logit is the
    mean of all logits, so greedy decoding never prefers it, which a row of zeros does as soon as
    every logit is negative.
    """
    kept = min(rows, len(table))
    resized_table = np.empty((rows, *table.shape[1:]), table.dtype)
    resized_table[:kept] = table[:kept]
    if rows > kept:
        total = np.zeros(table.shape[1:], np.float64)
        for start in range(0, len(table), _CHUNK_ROWS):
            total += table[start : start + _CHUNK_ROWS].astype(np.float64).sum(0)
        resized_table[kept:] = (total / len(table)).astype(table.dtype)
    return resized_table
