"""The loss by blocks of words on a mesh against all logits on one device.

python -m tests.sharding.cross_entropy MESH ...

prints a JSON line a mesh: the relative distance of the sums and of the gradients.
"""

import json
import sys

import jax
import numpy as np

from florence_jax.sharding import make_mesh, use_mesh
from florence_jax.training.losses import IGNORE, OutputLayer, summed_loss
from florence_jax.training.settings import LossConfig

# A vocabulary that no mesh divides, and blocks that do not divide a device's share of it.
ROWS, LENGTH, DIM, VOCAB, BLOCK = 8, 6, 16, 61, 7


def value_and_gradients(block, arguments):
    hidden, table, bias, labels = arguments

    def loss(hidden, table, bias):
        config = LossConfig(label_smoothing=0.1, z_loss=0.1, vocabulary_block=block)
        sums = summed_loss(hidden, labels, OutputLayer(table, bias), config)
        return sums.loss, sums

    found = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(hidden, table, bias)
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(found)]


def main(*meshes):
    draw = np.random.default_rng(0)
    labels = draw.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32)
    labels[::2, 4:] = IGNORE
    sizes = ((ROWS, LENGTH, DIM), (VOCAB, DIM), (VOCAB,))
    arguments = (*(draw.normal(size=size).astype(np.float32) for size in sizes), labels)
    expected = value_and_gradients(0, arguments)
    for text in meshes:
        with use_mesh(make_mesh(text)):
            found = value_and_gradients(BLOCK, arguments)
        pairs = zip(found, expected, strict=True)
        distance = max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs)
        print(json.dumps({"mesh": text, "distance": float(distance)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
