"""A checkpoint with the published tokenizer around a model small enough for a test."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from convert.verify.reference import random_params_with_spread_logits
from florence_jax.checkpoint import torch_tensors
from florence_jax.config import Florence2Config
from florence_jax.model import Params
from tests.shared_data import shared_path
from tests.small_model import small_model_config

DECODING = {
    "bos_token_id": 0,
    "decoder_start_token_id": 2,
    "early_stopping": True,
    "eos_token_id": 2,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
    "no_repeat_ngram_size": 3,
    "num_beams": 3,
    "pad_token_id": 1,
}


def small_config() -> Florence2Config:
    """Small sizes with the published vocabulary, `<image>` and padding rows included."""
    config = small_model_config(vocab_size=51328)
    return dataclasses.replace(config, image_token_id=51289)


def write_small_checkpoint(directory: Path, seed: int = 0) -> tuple[Florence2Config, Params]:
    """Write a native checkpoint with the published processor into `directory`."""
    config = small_config()
    params = random_params_with_spread_logits(config, seed)
    tensors = torch_tensors(params, "native")
    directory.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: np.ascontiguousarray(array) for name, array in tensors},
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )
    (directory / "config.json").write_text(json.dumps(config.to_hf("native")))
    (directory / "generation_config.json").write_text(json.dumps(DECODING))
    for file in shared_path("processor").iterdir():
        shutil.copy(file, directory / file.name)
    return config, params
