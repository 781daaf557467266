"""A backbone on a mesh: how far its logits are from one device's, and what its devices hold.

python -m tests.sharding.backbone MESH RULES
"""

import json
import sys

import jax
import numpy as np

import florence_jax as fj
from tests.backbone.timm_reference import DATA, stored_images


def main(mesh, rules):
    jax.config.update("jax_default_matmul_precision", "highest")
    images = np.repeat(stored_images(), 2, axis=0)
    alone, params = fj.load_backbone(DATA / "paper")
    backbone, divided = fj.load_backbone(DATA / "paper", mesh=mesh, rules=rules)
    expected = np.asarray(alone.logits(params, images))
    error = np.abs(np.asarray(backbone.logits(divided, images)) - expected).max()
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(divided))
    print(json.dumps({"error": float(error / np.abs(expected).max()), "share": held / total}))


if __name__ == "__main__":
    main(*sys.argv[1:])
