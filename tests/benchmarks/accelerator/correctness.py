"""Stage 2: the same numbers as transformers on this device, and as the CPU."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.benchmarks.accelerator.plan import (
    Context,
    Sizes,
    Unit,
    config_of,
    without_data_packages,
)
from tests.benchmarks.accelerator.report import Row

_STAGE = "correctness"
# Of the whole gradient, relative: float32 sums of thousands of terms in another order.
_GRADIENT_TOLERANCE = 1e-5


def units(sizes: Sizes) -> list[Unit]:
    return [
        *(
            Unit(
                stage=_STAGE,
                name=f"parity {dtype}",
                seconds=150,
                run=functools.partial(parity, dtype=dtype),
            )
            for dtype in sizes.parity_dtypes
        ),
        Unit(stage=_STAGE, name="answers", seconds=150, run=answers),
        Unit(stage=_STAGE, name="gradients", seconds=90, run=gradients),
        Unit(stage=_STAGE, name="determinism", seconds=90, run=determinism),
    ]


def parity(context: Context, *, dtype: str) -> Iterator[Row]:
    """Every stage, tokens and scores beside transformers' class on the same device.

    Both are judged by their distance from transformers' class in float64.
    """
    import torch

    from convert.verify.native import compare_with_native
    from convert.verify.stages import random_inputs
    from florence_jax.model import Model, random_params_with_spread_logits

    sizes = context.sizes
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    config = config_of(sizes.model)
    inputs = random_inputs(
        Model(config=config),
        batch=sizes.parity_rows,
        size=(sizes.side, sizes.side),
        text=13,
        target=8,
        seed=0,
    )
    rows = compare_with_native(
        config,
        random_params_with_spread_logits(config, 0),
        inputs,
        [dtype],
        new_tokens=sizes.parity_tokens,
        torch_device="cuda" if context.platform == "cuda" else "cpu",
    )[dtype]
    stages = [row for row in rows if row.own_error is not None]
    worst = max(stages, key=lambda row: (row.error or 0) / (row.bound or np.inf))
    yield Row(
        stage=_STAGE,
        what=f"{sizes.model} {dtype}, {len(stages)} stages",
        value=worst.error,
        unit="relative",
        target="every stage within its bound",
        met=not any(row.is_over for row in stages),
        note=f"worst {worst.stage}: PyTorch {worst.reference_error:.2g}, bound {worst.bound:.2g}"
        if worst.bound is not None
        else f"worst {worst.stage}: PyTorch has overflowed",
        details={"rows": [dataclasses.asdict(row) for row in rows]},
    )
    for row in rows:
        if row.own_error is None:
            same = "" if row.top1 is None else f"{row.top1:.1%} of PyTorch's tokens"
            yield Row(
                stage=_STAGE,
                what=f"{sizes.model} {dtype}, {row.stage}",
                value=row.error,
                unit="nats",
                target="within its bound",
                met=not row.is_over,
                note=f"{same} bound {row.bound:.2g}".strip(),
            )


def answers(context: Context) -> Iterator[Row]:
    """The shipped model's answers here and on the CPU of the same process."""
    import jax

    sizes = context.sizes
    on_cpu = _answers("float32", jax.devices("cpu")[0], sizes.answers)
    for dtype in dict.fromkeys(("float32", sizes.dtype)):
        here = _answers(dtype, jax.devices()[0], sizes.answers)
        equal = sum(a == b for a, b in zip(here, on_cpu, strict=True))
        yield Row(
            stage=_STAGE,
            what=f"shipped model's answers, {dtype}, equal to the CPU's float32",
            value=f"{equal} of {len(on_cpu)}",
            target="all" if dtype == "float32" else "",
            met=equal == len(on_cpu) if dtype == "float32" else None,
        )


def _answers(dtype: str, device: Any, count: int) -> list[Any]:
    import jax

    from florence_jax import demo
    from florence_jax.inference.requests import Request
    from florence_jax.processing import task_of

    with jax.default_device(device):
        pipeline = demo.shapes_pipeline(dtype)
        # Committed: the pipeline's own thread knows no default device.
        pipeline = dataclasses.replace(pipeline, params=jax.device_put(pipeline.params, device))
        rows = demo.held_out_scenes()[:count]
        scenes = demo.SHAPES / "scenes" / "test"
        requests = [Request(image=scenes / row["image"], prompt=row["prefix"]) for row in rows]
        results = pipeline.answer(requests, pipeline.generation)
        return [result[task_of(row["prefix"])] for row, result in zip(rows, results, strict=True)]


def gradients(context: Context) -> Iterator[Row]:
    """The gradient of tiny here and on the CPU, whose gradient the tests hold to PyTorch's."""
    import jax

    step, _ = _small_training(context.sizes.small, context.sizes.small_side)
    found = [jax.device_get(step(device)) for device in (jax.devices()[0], jax.devices("cpu")[0])]
    here, cpu = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(one)]) for one in found)
    distance = float(np.linalg.norm(here - cpu) / np.linalg.norm(cpu))
    yield Row(
        stage=_STAGE,
        what=f"gradient of {context.sizes.small}, float32, beside the CPU's",
        value=distance,
        unit="relative",
        target=f"<= {_GRADIENT_TOLERANCE:g}",
        met=distance <= _GRADIENT_TOLERANCE,
    )


def determinism(context: Context) -> Iterator[Row]:
    """Whether two runs of one program give the same bits."""
    import jax

    from florence_jax.generation import PUBLISHED, generate
    from florence_jax.model import Model, random_params_with_spread_logits

    sizes = context.sizes
    config = config_of(sizes.small)
    params = jax.device_put(random_params_with_spread_logits(config, 0))
    shape = (1, sizes.small_side, sizes.small_side, 3)
    pixels = np.random.default_rng(0).standard_normal(shape).astype(np.float32)

    def answer() -> Any:
        return generate(
            Model(config=config, dtype=sizes.dtype),
            params,
            pixel_values=pixels,
            input_ids=np.full((1, 13), 7, np.int32),
            config=dataclasses.replace(PUBLISHED, max_new_tokens=sizes.new_tokens),
        )

    step, device = _small_training(sizes.small, sizes.small_side)
    for what, run in (("beam search", answer), ("gradient", lambda: step(device))):
        first, second = (jax.tree.leaves(jax.device_get(run())) for _ in range(2))
        same = all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
        # Gradients of the token table are atomic sums on a GPU: not promised, but worth knowing.
        promised = what == "beam search"
        yield Row(
            stage=_STAGE,
            what=f"two runs of {what}, {sizes.dtype if promised else 'float32'}",
            value="equal bits" if same else "differ",
            target="equal bits" if promised else "",
            met=same if promised else None,
        )


@functools.lru_cache(maxsize=1)
def _small_training(name: str, side: int) -> tuple[Any, Any]:
    """A function of a device to the gradient of the small model's loss, and the first device."""
    import jax

    from florence_jax.checkpoint.param_tree import flatten
    from florence_jax.model import Model, random_params_with_spread_logits

    without_data_packages()
    from florence_jax.training.step import Batch, LossFn

    config = config_of(name)
    draw = np.random.default_rng(0)
    shape, words = (2, side, side, 3), config.text.vocab_size - 1
    batch = Batch(
        images=draw.integers(0, 256, shape).astype(np.uint8),
        input_ids=draw.integers(4, words, (2, 7)).astype(np.int32),
        labels=draw.integers(4, words, (2, 9)).astype(np.int32),
    )
    params = dict(flatten(random_params_with_spread_logits(config, 0)))
    objective = LossFn(model=Model(config=config))

    def loss(params: Any, images: Any, input_ids: Any, labels: Any) -> Any:
        sums = objective(params, Batch(images, input_ids, labels), None)
        return sums.loss / sums.tokens

    def gradient(params: Any, *arrays: Any) -> Any:
        with objective.model.precision_scope():
            return jax.grad(loss)(params, *arrays)

    compiled = jax.jit(gradient)

    def run(device: Any) -> Any:
        return compiled(*jax.device_put((params, *batch[:3]), device))

    return run, jax.devices()[0]
