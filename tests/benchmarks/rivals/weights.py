"""The weights that every engine gets: one directory in the native naming.

    python -m tests.benchmarks.rivals.weights MODEL SEED FOLDER

writes it and prints its path. In a process of its own, so that the measuring one stays small and
takes no accelerator.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from florence_jax.config import Florence2Config
    from florence_jax.model import Params

# `<unk>`, which a byte-level tokenizer never produces.
_UNUSED_TOKEN = 3


def prepare_weights(model: str, seed: int, folder: Path) -> Path:
    """A directory in `folder`, named after its content, with `model`'s weights in float32.

    Args:
        model: "base", "large", "tiny" (random weights with spread-out logits), a checkpoint
            directory or a hub id.
        seed: of random weights.
        folder: where directories of earlier runs are kept and found again.

    Raises:
        ValueError: `model` cannot be loaded; the message says why.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.rivals.weights", model, str(seed), str(folder)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["the process was killed"]
        raise ValueError(f"the weights of {model!r} could not be prepared: {lines[-1]}")
    return Path(done.stdout.splitlines()[-1])


def write_weights(model: str, seed: int, folder: Path) -> Path:
    """`prepare_weights` in this process."""
    from florence_jax.config import PRESETS
    from florence_jax.inference.load_sharded import load
    from florence_jax.model import random_params_with_spread_logits

    if model in PRESETS:
        config = PRESETS[model]()
        params: Any = random_params_with_spread_logits(config, seed)
    else:
        handle, params = load(model)
        config = handle.config
    return write_params(config, params, folder)


def write_params(config: Florence2Config, params: Params, folder: Path) -> Path:
    """These sizes and weights as a directory in `folder`, named after its content."""
    from safetensors.numpy import save_file

    from florence_jax.checkpoint import torch_tensors

    sizes = config.to_hf("native")
    if config.image_token_id >= config.text.vocab_size:
        # The original has no image placeholder; transformers needs one that it can look up.
        sizes["image_token_id"] = _UNUSED_TOKEN
    tensors = {
        name: np.require(array, np.float32, ["C"])
        for name, array in torch_tensors(params, "native")
    }
    digest = hashlib.blake2b(json.dumps(sizes, sort_keys=True).encode(), digest_size=8)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].data)
    directory = folder / digest.hexdigest()
    if not directory.exists():
        partial = directory.with_name(f"{directory.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        (partial / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
        partial.rename(directory)
    return directory


if __name__ == "__main__":
    print(write_weights(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
