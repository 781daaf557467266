"""One device against a mesh: generated tokens and scores, for a batch that no mesh divides.

    python -m tests.sharding.tokens SIZE KIND,... MESH:RULES ...

prints a JSON line a mesh and kind of decoding. It needs 8 devices.
"""

import importlib
import json
import sys

import jax
import numpy as np

from florence_jax.checkpoint.param_tree import flatten, param_shapes, unflatten
from florence_jax.generation import GenerationConfig, generate, make_constraint
from florence_jax.model import Model, random_params_with_spread_logits
from florence_jax.sharding import load_rules, make_layout, make_mesh
from florence_jax.sharding.mesh import batch_parts
from tests.generation.random_automata import random_automaton
from tests.sharding.equality import ROWS, SIZES

DECODING = {
    "greedy": GenerationConfig(max_new_tokens=20, no_repeat_ngram_size=3),
    "beams": GenerationConfig(
        max_new_tokens=20, num_beams=3, num_return_sequences=2, no_repeat_ngram_size=3
    ),
    "sampling": GenerationConfig(
        max_new_tokens=20, do_sample=True, num_return_sequences=2, top_k=20, temperature=0.8
    ),
    "constrained": GenerationConfig(max_new_tokens=40, num_beams=3),
}
# How much longer the row of `</s>` is made: some answers must end before the limit, and some not.
END_OF_TEXT = {"small": 1.5, "tiny": 2.0}


def inputs(sizes):
    draw = np.random.default_rng(0)
    side = 64 if len(sizes.vision.depths) > 1 else 16
    return {
        "pixel_values": draw.standard_normal((ROWS, side, side, 3)).astype(np.float32),
        "input_ids": draw.integers(4, sizes.text.vocab_size, (ROWS, 7)).astype(np.int32),
    }


def main():
    jax.config.update("jax_default_matmul_precision", "highest")
    size, kinds, *cases = sys.argv[1:]
    sizes = SIZES[size]
    flat = dict(flatten(random_params_with_spread_logits(sizes, seed=0)))
    flat["shared/embedding"][sizes.text.eos_token_id] *= END_OF_TEXT[size]
    automaton, starts = random_automaton(3, sizes.text.vocab_size, ROWS)
    constraint = make_constraint(automaton, starts)

    def answers(model, params, kind):
        return generate(
            model,
            params,
            **inputs(sizes),
            config=DECODING[kind],
            constraint=constraint if kind == "constrained" else None,
            rng=jax.random.key(7),
        )

    parts = []
    module = importlib.import_module(generate.__module__)
    program = module.generate_jit

    def spied(*prepared):
        shards = getattr(prepared[5], "addressable_shards", ())  # of the prompts
        parts.append(len({str(shard.index) for shard in shards}))
        return program(*prepared)

    module.generate_jit = spied
    alone = {kind: answers(Model(config=sizes), unflatten(flat), kind) for kind in kinds.split(",")}
    for case in cases:
        mesh, rules = case.split(":")
        layout = make_layout(load_rules(rules), param_shapes(sizes), make_mesh(mesh))
        model, params = Model(config=sizes, layout=layout), unflatten(layout.to_padded(flat))
        for kind, theirs in alone.items():
            ours = answers(model, params, kind)
            line = {
                "case": case,
                "kind": kind,
                "rows": len(ours.sequences),
                "lengths": sorted(set(theirs.lengths.tolist())),
                "same": np.array_equal(ours.sequences, theirs.sequences),
                "parts": parts[-1],
                "batch_parts": batch_parts(layout.mesh),
                "scores": float(np.abs(ours.sequence_scores - theirs.sequence_scores).max()),
            }
            print(json.dumps(line))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
