"""How long the parts of base would take on a TPU v5e, by the TPU compiler's own schedules.

    python -m tests.benchmarks.tpu_estimate                    # all parts, minutes each, no TPU
    python -m tests.benchmarks.tpu_estimate encoder --write    # into tpu_budget.json

Needs `pip install libtpu`. A kernel takes the cycles of its bundles (`tpu_bundles`) or the time
that its arrays need to and from the chip's memory, whichever is longer; kernels run one after the
other. Not counted: waiting that is neither (so it is a lower estimate), and what overlaps between
kernels. Pallas's kernels have bundles as XLA's have. Bfloat16; nothing runs, so no weights.
"""

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.benchmarks.tpu_bundles import read_kernels
from train.plan.hlo import parse_hlo
from train.plan.schedule import endless, kernel_bytes, kernels_of

# 197 TFLOP/s is four matrix units of 128 x 128 multiply-adds in each cycle.
HERTZ = 197e12 / (4 * 128**2 * 2)
BYTES_PER_CYCLE = 819e9 / HERTZ
PROGRAM = "program.hlo"
BUDGET = Path(__file__).with_name("tpu_budget.json")
ROOT = Path(__file__).resolve().parents[2]
VISION_BATCH, TOWER_BATCH, ENCODER_BATCH, BEAM_BATCH, BEAMS = 8, 32, 8, 32, 3
LOSS_BATCH, LABELS = 4, 256
SIDE, PROMPT, NEW_TOKENS = 768, 16, 128


def stage(number: int) -> Callable[[Any], tuple[Callable, tuple]]:
    """One stage of the vision tower, VISION_BATCH images of SIDE x SIDE pixels."""

    def case(model: Any) -> tuple[Callable, tuple]:
        tower = model.config.vision
        side, channels = SIDE, tower.in_channels
        for before in range(number):
            side //= tower.patch_strides[before]
            channels = tower.embed_dims[before]

        def run(params: Any, pixels: Any) -> Any:
            return list(model.bind(params).vision_tower.stages)[number](pixels)

        return run, ((VISION_BATCH, side, side, channels),)

    return case


def tower(model: Any) -> tuple[Callable, tuple]:
    """The whole vision tower (timm's davit_base_fl), TOWER_BATCH images of SIDE x SIDE pixels."""

    def run(params: Any, pixels: Any) -> Any:
        return model.bind(params).vision_tower(pixels)

    return run, ((TOWER_BATCH, SIDE, SIDE, model.config.vision.in_channels),)


def windows(number: int) -> Callable[[Any], tuple[Callable, tuple]]:
    """Window attention of one block of a stage."""

    def case(model: Any) -> tuple[Callable, tuple]:
        tower = model.config.vision
        side = SIDE // math.prod(tower.patch_strides[: number + 1])

        def run(params: Any, maps: Any) -> Any:
            block = next(iter(list(model.bind(params).vision_tower.stages)[number].blocks))
            return block.spatial.window_attn(maps)

        return run, ((VISION_BATCH, side, side, tower.embed_dims[number]),)

    return case


def windows_gradient(number: int) -> Callable[[Any], tuple[Callable, tuple]]:
    """The same, forward and backward, for parameters and map."""

    def case(model: Any) -> tuple[Callable, tuple]:
        import jax

        forward, (maps,) = windows(number)(model)

        def run(params: Any, x: Any, cotangent: Any) -> Any:
            y, backward = jax.vjp(forward, params, x)
            return y, backward(cotangent)

        return run, (maps, maps)

    return case


def mlp_gradient(number: int) -> Callable[[Any], tuple[Callable, tuple]]:
    """Norm, MLP and residual of one block of a stage, with dropped branches, both ways."""

    def case(model: Any) -> tuple[Callable, tuple]:
        import jax
        import jax.numpy as jnp

        _, (maps,) = windows(number)(model)

        def run(params: Any, x: Any, cotangent: Any) -> Any:
            def forward(params: Any, x: Any) -> Any:
                block = next(iter(list(model.bind(params).vision_tower.stages)[number].blocks))
                return block.spatial._mlp_residual_pallas(x, jnp.full(len(x), 1.25))

            y, backward = jax.vjp(forward, params, x)
            return y, backward(cotangent)

        return run, (maps, maps)

    return case


def layer_gradient(model: Any) -> tuple[Callable, tuple]:
    """Self-attention of one encoder layer with dropout, forward and backward."""
    import jax

    tokens = (VISION_BATCH, model.config.num_image_tokens(SIDE, SIDE) + PROMPT)
    states = (*tokens, model.config.text.d_model)

    def run(params: Any, x: Any, cotangent: Any, ids: Any) -> Any:
        def forward(params: Any, x: Any) -> Any:
            attention = next(iter(model.bind(params).encoder.layers)).self_attn
            return attention(x, attention.key_value(x), ids != 1, key=jax.random.key(0))

        y, backward = jax.vjp(forward, params, x)
        return y, backward(cotangent)

    return run, (states, states, tokens)


def loss_gradient(model: Any) -> tuple[Callable, tuple]:
    """The loss of LOSS_BATCH rows of LABELS label tokens, forward and backward."""
    import jax

    from florence_jax.training.losses import OutputLayer, summed_loss
    from florence_jax.training.settings import LossConfig

    def run(params: Any, hidden: Any, labels: Any) -> Any:
        def loss(table: Any, hidden: Any) -> Any:
            return summed_loss(hidden, labels, OutputLayer(table), LossConfig()).loss

        return jax.value_and_grad(loss, argnums=(0, 1))(params["shared"]["embedding"], hidden)

    tokens = (LOSS_BATCH, LABELS)
    return run, ((*tokens, model.config.text.d_model), tokens)


def projector(model: Any) -> tuple[Callable, tuple]:
    side = SIDE // 32
    channels = model.config.vision.embed_dims[-1]

    def run(params: Any, maps: Any) -> Any:
        return model.bind(params).projector(maps)

    return run, ((VISION_BATCH, 1, side, side, channels),)


def encoder(model: Any) -> tuple[Callable, tuple]:
    """ENCODER_BATCH rows of the picture's tokens and PROMPT more."""
    image = model.config.num_image_tokens(SIDE, SIDE)

    def run(params: Any, features: Any, ids: Any) -> Any:
        return model.bind(params).encode(features, ids, ids != 1)

    return run, ((ENCODER_BATCH, image, model.config.text.d_model), (ENCODER_BATCH, PROMPT))


def beam(model: Any) -> tuple[Callable, tuple]:
    """The generation program from image features on; its loop's body is what is reported."""
    from florence_jax.generation import GenerationConfig
    from florence_jax.generation.generate import generate_jit
    from florence_jax.generation.inputs import prepare_inputs

    image = model.config.num_image_tokens(SIDE, SIDE)

    def run(params: Any, features: Any, ids: Any) -> Any:
        import numpy as np

        config = GenerationConfig(
            num_beams=BEAMS, no_repeat_ngram_size=3, max_new_tokens=NEW_TOKENS
        )
        prepared = prepare_inputs(
            model,
            params,
            image_features=features,
            input_ids=np.full((BEAM_BATCH, PROMPT), 3, np.int32),
            config=config,
        )
        # One loop, over the longest buffers: the ones before it are the same, and take as long to
        # compile.
        plan = dataclasses.replace(prepared.plan, buffers=prepared.plan.buffers[-1:])
        prepared = prepared._replace(plan=plan, input_ids=ids, attention_mask=ids != 1)
        return generate_jit(*prepared)

    return run, ((BEAM_BATCH, image, model.config.text.d_model), (BEAM_BATCH, PROMPT))


CASES: dict[str, Callable] = {
    "vision stage 1": stage(0),
    "vision stage 2": stage(1),
    "vision stage 3": stage(2),
    "vision stage 4": stage(3),
    "projector": projector,
    "tower": tower,
    "windows 1": windows(0),
    "windows 2": windows(1),
    "windows 3": windows(2),
    "windows 1 gradient": windows_gradient(0),
    "windows 2 gradient": windows_gradient(1),
    "windows 3 gradient": windows_gradient(2),
    "mlp 1 gradient": mlp_gradient(0),
    "mlp 2 gradient": mlp_gradient(1),
    "mlp 3 gradient": mlp_gradient(2),
    "encoder": encoder,
    "encoder attention gradient": layer_gradient,
    "loss gradient": loss_gradient,
    "beam body": beam,
}
VISION = ("vision stage 1", "vision stage 2", "vision stage 3", "vision stage 4", "projector")


def estimate(name: str, keep: Path | None = None) -> dict[str, Any]:
    """Cycles of one case, compiled in a process of its own.

    Args:
        keep: directory for the compiler's files, which are read again where they are there.

    Raises:
        RuntimeError: the compiler failed.
    """
    from train.plan.topology import TPU_ENVIRONMENT

    with tempfile.TemporaryDirectory(prefix="tpu-estimate-") as temporary:
        directory = keep / name.replace(" ", "_") if keep else Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / PROGRAM).exists():
            dump = (
                f"--xla_jf_dump_to={directory} --xla_jf_dump_llo_text=true "
                "--xla_jf_dump_llo_pass_label_regex=final_bundles|deduplication"
            )
            module = "tests.benchmarks.tpu_estimate"
            done = subprocess.run(
                [sys.executable, "-m", module, "--compile", name, str(directory)],
                env={**os.environ, **TPU_ENVIRONMENT, "LIBTPU_INIT_ARGS": dump},
                cwd=ROOT,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
        return _read(name, directory)


def _compile(name: str, directory: Path) -> None:
    import jax
    import jax.numpy as jnp

    from florence_jax.config import base
    from florence_jax.model.model import Model, abstract_params
    from florence_jax.sharding import make_mesh, use_mesh
    from train.plan.topology import load_devices, parse_topology

    device = load_devices(parse_topology("v5e:2x2"))[0]
    one = jax.sharding.SingleDeviceSharding(device)

    def array(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=one)

    config = base()
    if name == "beam body":
        # The loop has nothing of the encoder, whose other layers would only be compiled.
        text = dataclasses.replace(config.text, encoder_layers=1)
        config = dataclasses.replace(config, text=text)
    model = Model(config=config, dtype="bfloat16")
    function, shapes = CASES[name](model)
    params = jax.tree.map(
        lambda leaf: array(leaf.shape, jnp.bfloat16), abstract_params(model.config)
    )
    inputs = [array(shape, jnp.int32 if len(shape) == 2 else jnp.bfloat16) for shape in shapes]
    started = time.perf_counter()
    # Kernels ask the mesh which chip they are for.
    with use_mesh(make_mesh("data=1", [device])):
        compiled = jax.jit(function).lower(params, *inputs).compile()
    seconds = time.perf_counter() - started
    facts = {"compiling_seconds": round(seconds, 1), "libtpu": version("libtpu")}
    (directory / "facts.json").write_text(json.dumps(facts))
    program = compiled.as_text()
    assert program is not None
    (directory / PROGRAM).write_text(program)


def _read(name: str, directory: Path) -> dict[str, Any]:
    module = parse_hlo((directory / PROGRAM).read_text())
    kernels = read_kernels(directory)
    root = endless(module)[-1].calls("body")[0] if name == "beam body" else module.entry
    total: dict[str, float] = dict.fromkeys(("cycles", "bundles", "matmul", "memory", "xla"), 0.0)
    slowest: Counter[str] = Counter()
    for one, operands, times in kernels_of(module, root):
        waiting = kernel_bytes(module, one, operands) / BYTES_PER_CYCLE
        kernel = kernels.get(one.name)
        said = one.integer("estimated_cycles") or 0
        # XLA's own kernels have no file but a count of bundles; Pallas's have a file, and XLA says
        # nothing of them: they count there as they do here.
        own = said if "bundle_analysis_data" in one.attributes else 0
        busy = kernel.cycles if kernel else own
        if one.opcode == "custom-call" and kernel:
            said = said or max(busy, waiting)
        slowest[f"{one.name} {one.operation[-60:]}"] += round(times * max(busy, waiting))
        total["cycles"] += times * max(busy, waiting)
        total["bundles"] += times * busy
        total["matmul"] += times * (kernel.matmul_cycles if kernel else 0)
        total["memory"] += times * waiting
        total["xla"] += times * said
    return {
        **{kind: round(cycles) for kind, cycles in total.items()},
        "ms": round(total["cycles"] / HERTZ * 1e3, 4),
        "slowest": dict(slowest.most_common(12)),
        **json.loads((directory / "facts.json").read_text()),
    }


def main() -> int:
    """Print the table; with --write, keep the cycles as the budget."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", default=list(CASES), help=f"of: {', '.join(CASES)}")
    parser.add_argument("--write", action="store_true", help="store them as the budget")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the compiler's files there")
    parser.add_argument("--kernels", action="store_true", help="list the slowest kernels")
    parser.add_argument("--compile", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compile:
        _compile(options.compile[0], Path(options.compile[1]))
        return 0
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        parser.error(f"{unknown} are none of {', '.join(CASES)}")
    stored = json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
    print(
        f"{'':<28}{'ms':>9}{'cycles':>13}{'GB':>8}{'matmul':>9}{'memory':>9}{'XLA says':>10}"
        f"{'budget':>9}"
    )
    for name in options.cases:
        found = estimate(name, options.keep)
        cycles = max(found["cycles"], 1)
        budget = f"{cycles / stored[name]['cycles']:.3f}" if name in stored else "-"
        print(
            f"{name:<28}{found['ms']:>9.3f}{cycles:>13,}"
            f"{found['memory'] * BYTES_PER_CYCLE / 1e9:>8.3f}{found['matmul'] / cycles:>9.1%}"
            f"{found['memory'] / cycles:>9.1%}{found['xla'] / cycles:>10.2f}{budget:>9}",
            flush=True,
        )
        slowest = found.pop("slowest")
        if options.kernels:
            print("\n".join(f"{cycles:>29,}  {kernel}" for kernel, cycles in slowest.items()))
        if options.write:
            stored[name] = found
            BUDGET.write_text(json.dumps(stored, indent=1) + "\n")
    if all(name in stored for name in VISION):
        print(f"vision, {VISION_BATCH} images: {sum(stored[n]['ms'] for n in VISION):.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
