"""What a constraint costs: the same number of tokens with and without one, in turns.

    python -m tests.benchmarks.constrained_speed PROCESSOR --batch 1 4

PROCESSOR is a directory with the published tokenizer. Random weights, 577 image tokens, every row
asked for another task; answers are held at `--new-tokens` tokens by a minimum, which a constraint
obeys as long as it leaves a legal token. The lengths of both are printed before the times.
"""

import argparse
import importlib
import statistics
import time

TASKS = ["<OD>", "<OCR_WITH_REGION>", "<CAPTION>", "<DENSE_REGION_CAPTION>"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("processor", help="directory with the published tokenizer")
    parser.add_argument("--preset", default="base", help="base or large (default: base)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    measure(options)


def measure(options: argparse.Namespace) -> None:
    """Print the medians of each batch size and their ratio."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from florence_jax.config import PRESETS
    from florence_jax.generation import GenerationConfig
    from florence_jax.inference.constraints import AnswerConstraints
    from florence_jax.inference.requests import Request
    from florence_jax.model import Model, random_params_with_spread_logits
    from florence_jax.processing import load_tokenizer

    room = importlib.import_module("florence_jax.generation.generate")
    config = PRESETS[options.preset]()
    model = Model(config=config, dtype=options.dtype)
    dtype = jnp.dtype(options.dtype)
    params = jax.tree.map(
        lambda leaf: leaf.astype(dtype), random_params_with_spread_logits(config, seed=0)
    )
    constraints = AnswerConstraints(load_tokenizer(options.processor), config.text.vocab_size)
    generator = np.random.default_rng(0)
    length = options.new_tokens
    settings = GenerationConfig(
        num_beams=options.beams,
        no_repeat_ngram_size=3,
        min_new_tokens=length,
        max_new_tokens=length,
    )
    for batch in options.batch:
        features = generator.standard_normal((batch, 577, config.text.d_model), np.float32)
        requests = [Request(image=None, prompt=TASKS[row % len(TASKS)]) for row in range(batch)]
        calls = {}
        for name, constraint in (("free", None), ("constrained", constraints(requests))):
            prepared = room.prepare_inputs(
                model,
                params,
                image_features=jnp.asarray(features),
                input_ids=generator.integers(5, 200, (batch, 6)),
                config=settings,
                constraint=constraint,
            )
            calls[name] = lambda prepared=prepared: jax.block_until_ready(room.run(prepared))
            output = calls[name]()
            print(f"{batch} x {options.beams} beams, {name}: {np.asarray(output.lengths)} tokens")
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(options.turns):
            for name in list(calls)[:: 1 if turn % 2 else -1]:
                started = time.perf_counter()
                calls[name]()
                seconds[name].append(time.perf_counter() - started)
        free, bound = (statistics.median(seconds[name]) for name in calls)
        paired = statistics.median(
            b / a for a, b in zip(seconds["free"], seconds["constrained"], strict=True)
        )
        print(
            f"{batch} x {options.beams} beams: free {free:.3f} s, constrained {bound:.3f} s: "
            f"{bound / free - 1:+.1%} (median of {options.turns} pairs {paired - 1:+.1%})",
            flush=True,
        )


if __name__ == "__main__":
    main()
