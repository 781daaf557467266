"""Seconds of a training step beside the same step of transformers' native class in PyTorch.

    python -m tests.benchmarks.train_step --preset base --side 384 --rows 2
    python -m tests.benchmarks.train_step --preset shapes --side 192 --rows 16 --engines ours eager

Same weights, batch, dtype, threads, malloc settings and update (AdamW, gradients clipped to norm
1), dropout and drop-path off; the first losses are compared before anything is timed. Each engine
is a process of its own; they take their steps in turn, the order reversed each round, and wait on
a pipe meanwhile. PyTorch is given normalised pixels, ours bytes.
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from florence_jax.config import PRESETS, Florence2Config
from tests.benchmarks.malloc import TUNED

ENGINES = ("ours", "eager", "compiled")
PROMPT, LEARNING_RATE, CLIP = 16, 1e-5, 1.0


def main() -> None:
    """Start an engine a process, compare their losses, let them step in turn, print the figures."""
    options = _options()
    if options.engine:
        return _serve(options)
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    if options.malloc == "tuned":
        environment["GLIBC_TUNABLES"] = TUNED
    workers = {}
    try:
        for name in options.engines:
            command = [sys.executable, "-m", "tests.benchmarks.train_step", *sys.argv[1:]]
            workers[name] = subprocess.Popen(
                [*command, "--engine", name],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            first = _ask(workers[name])
            print(f"{name}: first step {first['seconds']:.1f} s, loss {first['loss']:.6f}")
            workers[name].first_loss = first["loss"]  # type: ignore[attr-defined]
        losses = [worker.first_loss for worker in workers.values()]  # type: ignore[attr-defined]
        if max(losses) - min(losses) > options.tolerance * abs(losses[0]):
            sys.exit(f"the engines do not compute the same loss: {losses}")
        samples: dict[str, list[dict]] = {name: [] for name in workers}
        for number in range(options.rounds):
            for name in list(workers)[:: 1 if number % 2 else -1]:
                samples[name].append(_ask(workers[name]))
        _report(options, samples)
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="base", choices=(*PRESETS, "shapes", "smallest"))
    parser.add_argument("--side", type=int, default=384, help="of the images, pixels")
    parser.add_argument("--rows", type=int, default=2, help="of a batch")
    parser.add_argument("--target", type=int, default=64, help="target tokens")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--remat", default="none", choices=("none", "blocks", "dots"))
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--malloc", default="tuned", choices=("tuned", "default"))
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of losses, relative")
    parser.add_argument("--peak", type=float, default=0.0, help="FLOP/s of the machine, for MFU")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    return parser.parse_args()


def _ask(worker: subprocess.Popen) -> dict:
    worker.stdin.write("step\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        sys.exit(f"an engine ended with {worker.wait()}; its messages are above")
    return json.loads(line)


def _report(options: argparse.Namespace, samples: dict[str, list[dict]]) -> None:
    flops = step_flops(options)
    print(f"{options.preset}, {options.side} px, {options.rows} rows, {flops / 1e12:.2f} TF a step")
    medians = {}
    for name, taken in samples.items():
        seconds = [sample["seconds"] for sample in taken]
        medians[name] = statistics.median(seconds)
        cpu = statistics.median(sample["cpu_seconds"] for sample in taken)
        mfu = f", MFU {flops / medians[name] / options.peak:.1%}" if options.peak else ""
        print(
            f"{name:9} {medians[name]:7.3f} s ({min(seconds):.3f} to {max(seconds):.3f}), "
            f"{cpu:.3f} CPU-s, {options.rows / medians[name]:.2f} images/s, "
            f"{flops / medians[name] / 1e9:.0f} GFLOP/s{mfu}, peak {taken[-1]['peak_gib']:.2f} GiB"
        )
    for name in medians:
        if name != "ours" and "ours" in medians:
            print(f"{name} / ours {medians[name] / medians['ours']:.2f}")


def _serve(options: argparse.Namespace) -> None:
    """One engine: a step for each line of standard input, a JSON line for each step."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a compiler prints is no reply
    step = build(options)
    for _ in sys.stdin:
        before, started = time.process_time(), time.perf_counter()
        loss = step()
        reply = {
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - before,
            "loss": loss,
            "peak_gib": peak_gib(options.engine),
        }
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def build(options: argparse.Namespace) -> Callable[[], float]:
    """The step of `options.engine`, with its weights on the device; a call returns the loss."""
    return (_ours if options.engine == "ours" else _torch)(options)


def peak_gib(engine: str) -> float:
    """The most memory that the engine has held: the device's, or on a CPU the process's."""
    if engine == "ours":
        import jax

        peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    else:
        import torch

        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    if peak:
        return peak / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _config(options: argparse.Namespace) -> Florence2Config:
    if options.preset == "shapes":
        from train.recipes.shapes import architecture as config
    elif options.preset == "smallest":
        from tests.training.small import CONFIG as config
    else:
        config = PRESETS[options.preset]()
    quiet = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, drop_path_rate=0.0),
        text=dataclasses.replace(config.text, **quiet),
    )


def _batch(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images uint8[B, H, W, 3], prompts int32[B, P], labels int32[B, L]."""
    draw = np.random.default_rng(0)
    # Below the image placeholder of the smallest model, its last token.
    vocabulary = min(_config(options).text.vocab_size - 1, 1200)
    images = draw.integers(0, 256, (options.rows, options.side, options.side, 3))
    prompt = draw.integers(4, vocabulary, (options.rows, PROMPT))
    labels = draw.integers(4, vocabulary, (options.rows, options.target))
    return images.astype(np.uint8), prompt.astype(np.int32), labels.astype(np.int32)


def step_flops(options: argparse.Namespace) -> float:
    from florence_jax.checkpoint.param_tree import param_shapes
    from florence_jax.training.metrics.flops import update_flops
    from florence_jax.training.optimizer import assign_param_groups

    config = _config(options)
    return update_flops(
        config,
        assign_param_groups(param_shapes(config), ((".*", 1.0),), config),
        rows=options.rows,
        image_size=(options.side, options.side),
        prompt=PROMPT,
        labels=options.target,
    )


def _ours(options: argparse.Namespace):
    import jax

    from florence_jax.checkpoint.param_tree import flatten
    from florence_jax.model import Model, random_params_with_spread_logits
    from florence_jax.training.optimizer import (
        OptimizerConfig,
        assign_param_groups,
        build_optimizer,
        learning_rate_schedule,
    )
    from florence_jax.training.state import Batch, new_state
    from florence_jax.training.step import LossFn, build_step

    config = _config(options)
    flat = dict(flatten(random_params_with_spread_logits(config, seed=0)))
    settings = OptimizerConfig(learning_rate=LEARNING_RATE, schedule="constant", clip_norm=CLIP)
    param_groups = assign_param_groups(flat, settings.rules, config)
    trainable = {path: leaf for path, leaf in flat.items() if param_groups[path].trains}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trainable}
    schedule = learning_rate_schedule(settings, 1000)
    optimizer = build_optimizer(
        settings, schedule, {path: param_groups[path] for path in trainable}
    )
    objective = LossFn(model=Model(config=config, dtype=options.dtype), remat=options.remat)
    update = jax.jit(build_step(objective, optimizer, schedule, seed=0), donate_argnums=0)
    state = new_state(trainable, frozen, optimizer, with_ema=False)
    del flat, trainable, frozen
    batch = jax.device_put(Batch(*(array[None] for array in _batch(options))))

    def step() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(update(state, batch))
        return float(metrics.loss)

    return step


def _torch(options: argparse.Namespace):
    import torch

    from convert.verify.reference import native_model, random_params_with_spread_logits
    from florence_jax.model import Model
    from florence_jax.training.step import LossFn

    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = _config(options)
    model = (
        native_model(config, random_params_with_spread_logits(config, seed=0)).train().to(device)
    )
    images, prompt, labels = _batch(options)
    pixels = np.array(LossFn(model=Model(config=config)).pixels(images)).transpose(0, 3, 1, 2)
    tokens = config.num_image_tokens(options.side, options.side)
    marks = np.full((options.rows, tokens), model.config.image_token_id)
    ids = torch.from_numpy(np.concatenate([marks, prompt], axis=1)).long().to(device)
    inputs = {
        "pixel_values": torch.from_numpy(np.ascontiguousarray(pixels)).to(device),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.from_numpy(labels).long().to(device),
    }
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    run = torch.compile(model) if options.engine == "compiled" else model
    half = options.dtype == "bfloat16"

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = run(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    return step


if __name__ == "__main__":
    main()
