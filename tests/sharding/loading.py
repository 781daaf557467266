"""Loads a checkpoint onto 8 devices, a JSON line a layout.

    python -m tests.sharding.loading DIRECTORY MESH:RULES ...

DIRECTORY is filled first.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

import florence_jax as fj
from florence_jax.checkpoint import load, save_checkpoint, torch_tensors
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.checkpoint.pytorch.key_map import match_name
from florence_jax.model import random_params_with_spread_logits
from florence_jax.sharding import trim
from tests.sharding.equality import SIZES


def main():
    directory, cases = Path(sys.argv[1]), sys.argv[2:]
    sizes = SIZES["tiny"]
    params = random_params_with_spread_logits(sizes, seed=0)
    tensors = {n: np.ascontiguousarray(a) for n, a in torch_tensors(params, "native")}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(sizes.to_hf("native")))
    save_checkpoint(directory / "saved", sizes, params)

    read = []
    fetch = load.fetch

    def noted(entry, view, dtype):
        read.append((match_name(entry.tensor.name, "native").path, view.size))
        return fetch(entry, view, dtype)

    load.fetch = noted
    for case in cases:
        mesh, rules = case.split(":")
        read.clear()
        model, loaded = fj.load(directory, mesh=mesh, rules=rules)
        layout, found = model.layout, dict(flatten(loaded))
        true = dict(flatten(params))
        restored = dict(flatten(fj.load(directory / "saved", mesh=mesh, rules=rules)[1]))
        line = {
            "case": case,
            "exact": all(
                np.asarray(trim(leaf, true[path].shape)).tobytes() == true[path].tobytes()
                for path, leaf in found.items()
            ),
            "restored_alike": all(
                leaf.sharding == restored[path].sharding
                and np.asarray(leaf).tobytes() == np.asarray(restored[path]).tobytes()
                for path, leaf in found.items()
            ),
            "zeros_behind": all(
                not np.asarray(found[path])[len(true[path]) :].any() for path in layout.padded
            ),
            "padded": {path: list(shape) for path, shape in layout.padded.items()},
            # No part that was read is larger than what one device keeps of it.
            "parts_only": all(
                size == np.prod(layout.true_sharding(path).shard_shape(true[path].shape))
                for path, size in read
            ),
            "read_once": sum(size for _, size in read) == sum(a.size for a in true.values()),
            "bytes": max(
                sum(
                    shard.data.nbytes
                    for leaf in found.values()
                    for shard in leaf.addressable_shards
                    if shard.device == device
                )
                for device in jax.devices()
            ),
            "expected_bytes": layout.bytes_per_device(),
        }
        print(json.dumps(line))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
