"""Saves a state on one mesh and restores it on others, in one process with 8 devices.

    python -m tests.sharding.restoring DIRECTORY

prints a JSON line for each pair of (devices and rules saved from, restored to): whether every array
has the bytes it had, and lies as the rules say.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from florence_jax.checkpoint.param_tree import flatten
from florence_jax.model import random_params_with_spread_logits
from florence_jax.sharding import make_mesh
from florence_jax.training.checkpointing.manager import Checkpoints, named_leaves
from florence_jax.training.settings import CheckpointConfig
from tests.sharding.equality import SIZES, training_on

AXES = {"dp": "data", "fsdp": "fsdp", "tp": "tensor"}
PLACES = [(devices, rules) for rules in AXES for devices in (1, 2, 4, 8)]


def training(devices, rules):
    return training_on("small", make_mesh(f"{AXES[rules]}=-1", jax.devices()[:devices]), rules)


def main():
    directory = Path(sys.argv[1])
    flat = dict(flatten(random_params_with_spread_logits(SIZES["small"], seed=0)))
    for devices, rules in PLACES:
        saver = training(devices, rules)
        state = saver.placement.to_padded(saver.first_state(flat))
        true = {name: np.asarray(leaf) for name, leaf in leaves(saver, state).items()}
        with Checkpoints(directory / f"{rules}_{devices}", CheckpointConfig()) as kept:
            kept.save(1, saver.placement.to_true_shape(state), {"rows": 3})
            kept.wait()
            for to in PLACES:
                reader = training(*to)
                restored, meta = kept.restore(reader.abstract_state())
                restored = reader.placement.to_padded(restored)
                wanted = jax.tree.leaves(reader.padded_state())
                found = leaves(reader, restored)
                exact = all(
                    true[name].tobytes() == np.asarray(found[name]).tobytes() for name in true
                )
                placed = all(
                    leaf.sharding.is_equivalent_to(want.sharding, leaf.ndim)
                    and leaf.shape == want.shape
                    for leaf, want in zip(jax.tree.leaves(restored), wanted, strict=True)
                )
                line = {"saved": [devices, rules], "restored": to, "exact": exact, "placed": placed}
                print(json.dumps({**line, "rows": meta["rows"]}))
                sys.stdout.flush()


def leaves(training, state):
    return named_leaves(training.placement.to_true_shape(state))


if __name__ == "__main__":
    main()
