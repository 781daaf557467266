"""Stage 4: the training step beside the same step of PyTorch: time, MFU and peak memory.

Each engine has the device to itself, so that its peak memory is its own. The steps are those of
`tests.benchmarks.train_step`.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Iterator

from tests.benchmarks import train_step
from tests.benchmarks.accelerator.plan import Context, Sizes, Unit, without_data_packages
from tests.benchmarks.accelerator.report import Row

_STAGE = "training"
_LABELS = 64
# Of large in bfloat16: share of the measured matmul peak, and times torch.compile's speed.
_LEAST_MFU, _LEAST_RATIO = 0.40, 1.1
_built: dict[str, Callable[[], float]] = {}


def units(sizes: Sizes) -> list[Unit]:
    # What has a target first. Ours after compiled, as it is a multiple of that one's speed.
    first = [*((engine, "none") for engine in sizes.torch_steps if engine == "compiled")]
    first.append(("ours", sizes.remat[0]))
    rest = [*(("ours", remat) for remat in sizes.remat[1:])]
    rest += [(engine, "none") for engine in sizes.torch_steps if engine != "compiled"]
    return [
        Unit(
            stage=_STAGE,
            name=f"{preset} {side} px {engine} {remat}",
            # Inductor compiles both directions of the whole model.
            seconds=300 if engine == "compiled" else 180,
            run=functools.partial(
                step, preset=preset, side=side, batch=batch, engine=engine, remat=remat
            ),
        )
        for engines in (first, rest)
        for preset, side, batch in sizes.training
        for engine, remat in engines
    ]


def step(
    context: Context, *, preset: str, side: int, batch: int, engine: str, remat: str
) -> Iterator[Row]:
    """The median of a step's seconds."""
    options = step_options(
        context, preset=preset, side=side, batch=batch, engine=engine, remat=remat
    )
    advance = built(options)
    seconds, losses = [], []
    # The first compiles, the second may still autotune.
    for number in range(context.sizes.rounds + 2):
        start = time.perf_counter()
        losses.append(advance())
        if number >= 2:
            seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    what = f"{preset}, {side} px, {batch} rows, {options.dtype}: "
    compiled = context.values.get(f"{what}compiled, remat none")
    ratio = compiled and compiled / (median * 1e3)
    work, ceilings = train_step.step_flops(options), context.ceilings
    share = ceilings and work / median / ceilings.flops_per_second
    met = None
    if preset == "large" and engine == "ours":
        met = (share or 0.0) >= _LEAST_MFU and (ratio or 0.0) >= _LEAST_RATIO
    note = f"{batch / median:.4g} images/s, peak {train_step.peak_gib(engine):.1f} GiB"
    if engine == "ours" and ratio is not None:
        note += f", {ratio:.2f} times compiled's speed"
    yield Row(
        stage=_STAGE,
        what=f"{what}{engine}, remat {remat}",
        value=median * 1e3,
        unit="ms",
        share=share,
        target=""
        if met is None
        else f">= {_LEAST_MFU:.0%} and >= {_LEAST_RATIO} times compiled's speed",
        met=met,
        note=f"{note}, first loss {losses[0]:.5f}",
        details={"seconds": seconds, "losses": losses, "flops": work},
    )


def step_options(
    context: Context, *, preset: str, side: int, batch: int, engine: str, remat: str
) -> argparse.Namespace:
    """The options of `tests.benchmarks.train_step`."""
    return argparse.Namespace(
        preset=preset,
        side=side,
        rows=batch,
        target=_LABELS if side > 64 else 8,
        dtype=context.sizes.dtype,
        remat=remat,
        engine=engine,
        threads=context.threads,
    )


def built(options: argparse.Namespace) -> Callable[[], float]:
    """A step with its weights on the device, compiled once in a process."""
    key = repr(options)
    if key not in _built:
        without_data_packages()
        _built[key] = train_step.build(options)
    return _built[key]
