"""One device against a mesh: logits, loss, gradients, parameters after five steps.

    python -m tests.sharding.equality SIZE float32|float64 TRUTH.npz MESH:RULES ...

prints a JSON line a mesh. It needs 8 devices:
XLA_FLAGS=--xla_force_host_platform_device_count=8. In float64 every leaf is compared by itself, and
one device's gradient is left in TRUTH.npz. In float32 the gradient is compared as a whole, and each
of its leaves with the truth: the leaves of two float32 computations differ by more than 1e-6 where
both are right, because each is so far from the truth.
"""

import dataclasses
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from florence_jax.checkpoint.param_tree import flatten, unflatten
from florence_jax.config import PRESETS
from florence_jax.model import random_params_with_spread_logits
from florence_jax.processing import ImageConfig
from florence_jax.sharding import MeshShape, make_mesh, pad_rows, padded_rows, use_mesh
from florence_jax.training.config import DataConfig, ModelConfig, TrainConfig
from florence_jax.training.prepare import TrainSetup, build_training
from florence_jax.training.pretrained import PretrainedFiles
from florence_jax.training.settings import OptimizerConfig
from florence_jax.training.state import Batch
from tests.training.small import CONFIG, small_batch
from train.shapes.source import ShapesConfig

STEPS = 5
ROWS = 5  # of no mesh a multiple
SIZES = {
    # A vocabulary that only one device divides.
    "small": dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, vocab_size=61)),
    "tiny": PRESETS["tiny"](),
}


def without_dropout(config):
    text = dataclasses.replace(
        config.text, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0
    )
    vision = dataclasses.replace(config.vision, drop_path_rate=0.0)
    return dataclasses.replace(config, text=text, vision=vision)


def training_on(
    size: str, mesh: Mesh, rules: str, *, dtype: str = "float32", **changes: Any
) -> TrainSetup:
    sizes = without_dropout(SIZES[size])
    config = TrainConfig(
        directory="unused",
        steps=STEPS,
        model=ModelConfig(architecture=sizes, processor="bytes", dtype=dtype),
        data=DataConfig(train=(ShapesConfig(),)),
        rules=rules,
        # A key's bias has no gradient but rounding, which Adam's usual eps would make a full step.
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            schedule="constant",
            eps=1e-3,
            clip_norm=0.0,
            ema_decay=0.5,
            **changes,
        ),
    )
    start = PretrainedFiles(config=sizes, files=None, tokenizer=None, image=ImageConfig())
    return build_training(config, start, mesh)


def batches(size: str) -> list[Batch]:
    return [small_batch(rows=ROWS, seed=number) for number in range(STEPS)]


def run(size: str, mesh: Mesh, rules: str, dtype: str) -> dict[str, Any]:
    """Everything that is compared, as numpy arrays of true shapes."""
    training = training_on(size, mesh, rules, dtype=dtype)
    placement, sizes = training.placement, training.objective.model.config
    params = {
        path: np.asarray(leaf, dtype)
        for path, leaf in flatten(random_params_with_spread_logits(sizes, seed=0))
    }
    state = placement.to_padded(training.first_state(params))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, training.padded_state())
    step = jax.jit(training.padded_step, donate_argnums=0, out_shardings=(shardings, None))
    found: dict[str, Any] = {"logits": logits(training, state.trainable | state.frozen), "loss": []}
    with use_mesh(mesh):
        for number, batch in enumerate(batches(size)):
            state, metrics = step(state, placement.batch(batch))
            found["loss"].append(float(metrics.loss))
            if number == 0:
                # Adam's first moment after one step: the gradient times a constant.
                found["gradients"] = host(placement.to_true_shape(moments(state.opt_state)))
    found["parameters"] = host(placement.to_true_shape(state.trainable))
    found["average"] = host(placement.to_true_shape(state.ema))
    return found


def moments(opt_state: Any) -> dict[str, jax.Array]:
    return next(part.mu for part in opt_state if hasattr(part, "mu"))


def logits(training: TrainSetup, params: dict[str, jax.Array]) -> np.ndarray:
    model, batch = training.objective.model, batches("")[0]
    tree = unflatten(params)
    rows = padded_rows(training.placement.mesh, ROWS)
    arrays = [
        pad_rows(array[0], rows)
        for array in (training.objective.pixels(jnp.asarray(batch.images)), batch.input_ids)
    ]
    given = model.logits(
        tree, pixel_values=arrays[0], input_ids=arrays[1], decoder_input_ids=arrays[1]
    )
    return np.asarray(given)[:ROWS]


def host(tree: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in tree.items()}


def distance(ours: Any, theirs: Any) -> float:
    """Of two trees: the largest of all leaves' relative distances, by norm.

    A key's bias has no gradient but rounding, a ten-millionth of the others': such leaves are
    measured by the average leaf.
    """
    pairs = list(zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))
    norms = [float(np.linalg.norm(np.float64(b))) for _, b in pairs]
    average = float(np.mean(norms))
    return max(
        float(np.linalg.norm(np.float64(a) - np.float64(b)))
        / (norm if norm > 1e-5 * average else average)
        for (a, b), norm in zip(pairs, norms, strict=True)
    )


def whole_distance(ours: Any, theirs: Any) -> float:
    """Of two trees, each as one vector."""
    flat = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)
        for tree in (ours, theirs)
    ]
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))


def compared(found: dict[str, Any], alone: dict[str, Any]) -> dict[str, float]:
    assert found.keys() == alone.keys()
    return {name: distance(found[name], alone[name]) for name in alone}


def main() -> None:
    jax.config.update("jax_default_matmul_precision", "highest")
    size, dtype, truth, *cases = sys.argv[1:]
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
        # Wherever the code asks for float32, whatever the dtype of activations.
        jnp.float32 = jnp.float64
        # How fast it runs is of no interest here, how long XLA takes is.
        jax.config.update("jax_disable_most_optimizations", True)
    alone = run(size, make_mesh(MeshShape(), jax.devices()[:1]), "dp", dtype)
    if dtype == "float64":
        assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(alone["gradients"]))
        np.savez(truth, **alone["gradients"])
    else:
        true = dict(np.load(truth))
    for case in cases:
        mesh, rules = case.split(":")
        found = run(size, make_mesh(mesh), rules, dtype)
        line = compared(found, alone)
        if dtype == "float32":
            line["gradients"] = whole_distance(found["gradients"], alone["gradients"])
            line["leaves"] = distance(found["gradients"], true)
            line["leaves_alone"] = distance(alone["gradients"], true)
        print(json.dumps({"case": case, **line}))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
