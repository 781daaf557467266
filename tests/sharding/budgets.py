"""Collectives of small programs compiled for 8 devices, a JSON line a program.

    python -m tests.sharding.budgets

`step` is an update, `generate` three beams; each line lists (kind, bytes, in a loop, operation).
"""

import json
import sys

import jax
import numpy as np

from florence_jax.checkpoint.param_tree import param_shapes, unflatten
from florence_jax.generation import GenerationConfig
from florence_jax.generation.generate import generate_jit
from florence_jax.generation.inputs import prepare_inputs
from florence_jax.generation.shard_inputs import shard_inputs
from florence_jax.model import Model
from florence_jax.sharding import load_rules, make_layout, make_mesh, use_mesh
from tests.sharding.equality import SIZES, batches, training_on
from tests.sharding.tokens import DECODING, inputs
from train.plan.collectives import collectives

STEPS = ("data=8:dp",)
GENERATIONS = ("data=8:dp", "fsdp=8:fsdp", "data=4,tensor=2:tp")


def step(case):
    mesh, rules = case.split(":")
    training = training_on("small", make_mesh(mesh), rules)
    placement, state = training.placement, training.padded_state()
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    jitted = jax.jit(training.padded_step, donate_argnums=0, out_shardings=(shardings, None))
    with use_mesh(placement.mesh):
        return jitted.lower(state, placement.batch(batches("")[0])).compile()


def generation(case):
    mesh, rules = case.split(":")
    sizes = SIZES["small"]
    layout = make_layout(load_rules(rules), param_shapes(sizes), make_mesh(mesh))
    leaves = {
        path: jax.ShapeDtypeStruct(layout.shape(path), np.float32, sharding=layout.sharding(path))
        for path in layout.shapes
    }
    params = unflatten(leaves)
    model = Model(config=sizes, layout=layout)
    config: GenerationConfig = DECODING["beams"]
    prepared = prepare_inputs(model, params, **inputs(sizes), config=config)
    with use_mesh(layout.mesh):
        return generate_jit.lower(*shard_inputs(prepared, layout.mesh)).compile()


def main():
    programs = [("step", step, case) for case in STEPS]
    programs += [("generate", generation, case) for case in GENERATIONS]
    for name, build, case in programs:
        compiled = build(case)
        found = [
            (one.kind, one.bytes, one.in_loop, one.operation)
            for one in collectives(compiled.as_text())
        ]
        print(json.dumps({"program": name, "case": case, "collectives": found}))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
