"""Stage 1: what the machine is, and what it can do at most."""

from __future__ import annotations

import functools
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.benchmarks.accelerator.plan import COPY, MATMUL, Context, Sizes, Unit
from tests.benchmarks.accelerator.report import Row

_STAGE = "environment"
_ROUNDS = 10


def units(sizes: Sizes) -> list[Unit]:
    return [
        # A fresh machine reads gigabytes of libraries from its disk first.
        Unit(stage=_STAGE, name="machine", seconds=150, run=machine),
        Unit(stage=_STAGE, name="ceilings", seconds=150, run=ceilings),
    ]


def machine(context: Context) -> Iterator[Row]:
    """Device, driver and versions."""
    import jax

    from tests.benchmarks.rivals.machine import describe

    device = jax.devices()[0]
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        driver = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        driver = "none"
    versions = describe() | {"backend": device.client.platform_version.replace("\n", " ")}
    yield Row(
        stage=_STAGE,
        what="device",
        value=f"{jax.device_count()} x {device.device_kind}",
        note=f"driver {driver}; {', '.join(f'{name} {value}' for name, value in versions.items())}",
    )


def ceilings(context: Context) -> Iterator[Row]:
    """Products of large square matrices and a copy, at the best of several calls."""
    import jax
    import jax.numpy as jnp

    sizes = context.sizes
    # What everything else is held against comes first, should one of the others fail.
    yield _product(sizes.matmul_side, "bfloat16", None)
    count = sizes.copy_bytes // 4
    values = jnp.ones((count,), jnp.float32)
    copy = jax.jit(lambda x: x + 1.0)
    best, median = times(functools.partial(copy, values))
    yield Row(
        stage=_STAGE,
        what=COPY,
        value=2 * 4 * count / best / 1e9,
        unit="GB/s",
        note=f"{4 * count / 2**20:,.0f} MiB read and written; median {median * 1e3:.3g} ms",
    )
    del values
    for dtype, precision in (("float16", None), ("float32", "highest"), ("float32", "default")):
        yield _product(sizes.matmul_side, dtype, precision)


def _product(side: int, dtype: str, precision: str | None) -> Row:
    import jax
    import jax.numpy as jnp

    values = jax.random.normal(jax.random.key(0), (side, side), dtype)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=precision))
    best, median = times(functools.partial(product, values))
    return Row(
        stage=_STAGE,
        what=MATMUL.format(dtype if precision != "default" else f"{dtype} in fewer bits"),
        value=2 * side**3 / best / 1e12,
        unit="TFLOP/s",
        note=f"{side} squared, normal values; median {median * 1e3:.3g} ms",
    )


def times(call: Callable[[], Any]) -> tuple[float, float]:
    """The best and the median seconds of a call, after two that warm up."""
    import jax

    seconds = []
    for number in range(_ROUNDS + 2):
        start = time.perf_counter()
        jax.block_until_ready(call())
        if number >= 2:
            seconds.append(time.perf_counter() - start)
    return min(seconds), statistics.median(seconds)
