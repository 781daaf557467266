"""Random or empty checkpoints of the published names and shapes, for the tests of this room."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from florence_jax.checkpoint.param_tree import flatten
from florence_jax.checkpoint.pytorch.key_map import Naming, match_path
from florence_jax.config import PRESETS, Florence2Config
from florence_jax.model import abstract_params

TOKEN_TABLES = {
    "original": (
        "language_model.model.shared.weight",
        "language_model.model.encoder.embed_tokens.weight",
        "language_model.model.decoder.embed_tokens.weight",
        "language_model.lm_head.weight",
    ),
    "native": (
        "model.language_model.shared.weight",
        "model.language_model.encoder.embed_tokens.weight",
        "model.language_model.decoder.embed_tokens.weight",
        "lm_head.weight",
    ),
}
LOGITS_BIAS = "language_model.final_logits_bias"

_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_BLOCK = 1 << 22


def torch_shapes(config: Florence2Config, naming: Naming) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a safetensors file of `config` holds."""
    shapes = {}
    for path, leaf in flatten(abstract_params(config)):
        match = match_path(path)
        assert match is not None, path
        name = match.name(naming)
        assert name is not None, path
        shapes[name] = match.rule.transform(naming).shape_to_torch(leaf.shape)
    if naming == "original":
        shapes[LOGITS_BIAS] = (1, config.text.vocab_size)
    return shapes


def tiny_tensors(naming: Naming = "original", seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 tensors of the "tiny" preset; a zero output bias."""
    rng = np.random.default_rng(seed)
    return {
        name: next(_random_blocks(rng, name, int(np.prod(shape)))).reshape(shape)
        for name, shape in torch_shapes(PRESETS["tiny"](), naming).items()
    }


def tiny_config(naming: Naming = "original", **text: Any) -> dict[str, Any]:
    """config.json of the "tiny" preset, with changes to its text_config."""
    config = PRESETS["tiny"]().to_hf(naming)
    config["text_config"] |= text
    return config


def write_directory(
    directory: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> Path:
    """A checkpoint directory of one safetensors file, written by the safetensors library."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(contiguous, directory / "model.safetensors")
    return directory


def write_checkpoint(
    directory: Path,
    *,
    preset: str,
    naming: Naming = "original",
    stored: str = "float32",
    file_format: str = "safetensors",
) -> None:
    """A random checkpoint of a published size, written without holding it in memory."""
    config = PRESETS[preset]()
    (directory / "config.json").write_text(json.dumps(config.to_hf(naming)))
    shapes = torch_shapes(config, naming)
    if file_format == "bin":
        _write_bin(directory / "pytorch_model.bin", shapes, stored)
    else:
        write_safetensors(directory / "model.safetensors", shapes, stored)


def write_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], stored: str, *, sparse: bool = False
) -> None:
    """Random tensors, or zeros that take no space on disk (`sparse`)."""
    dtype = np.dtype(ml_dtypes.bfloat16 if stored == "bfloat16" else stored)
    header, position = {}, 0
    for name, shape in shapes.items():
        end = position + int(np.prod(shape)) * dtype.itemsize
        header[name] = {
            "dtype": _CODES[stored],
            "shape": list(shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if sparse:
            file.truncate(8 + len(text) + position)
            return
        rng = np.random.default_rng(0)
        for name, shape in shapes.items():
            for block in _random_blocks(rng, name, int(np.prod(shape))):
                file.write(block.astype(dtype).tobytes())


def _write_bin(path: Path, shapes: Mapping[str, tuple[int, ...]], stored: str) -> None:
    import torch

    rng = np.random.default_rng(0)
    state = {}
    for name, shape in shapes.items():
        values = np.concatenate(list(_random_blocks(rng, name, int(np.prod(shape)))))
        state[name] = torch.from_numpy(values.reshape(shape)).to(getattr(torch, stored))
    shared, *others = TOKEN_TABLES["original"]
    # As torch saves a tied model: further names of one storage.
    state |= dict.fromkeys(others, state[shared])
    torch.save(state, path)


def _random_blocks(rng: np.random.Generator, name: str, size: int) -> Iterator[np.ndarray]:
    scale = np.float32(0.0 if name == LOGITS_BIAS else 0.02)
    for start in range(0, size, _BLOCK):
        # Adding zero turns the negative zeros of an all-zero tensor into plain ones.
        yield rng.standard_normal(min(_BLOCK, size - start), dtype=np.float32) * scale + np.float32(
            0
        )
