"""Stage 5: where the time of each program goes, kernel by kernel."""

from __future__ import annotations

import functools
import shutil
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.accelerator.plan import Context, Sizes, Unit
from tests.benchmarks.accelerator.report import Row
from tests.benchmarks.accelerator.training import built, step_options

_STAGE = "profile"
_CALLS = 3
# Rows of each program; the last batch of the sizes, capped.
_MOST_ROWS = 8
PROGRAMS = ("vision", "encoder", "greedy", "beam", "training")


def units(sizes: Sizes) -> list[Unit]:
    return [
        Unit(
            stage=_STAGE,
            name=program,
            seconds=150,
            run=functools.partial(kernels, program=program),
        )
        for program in PROGRAMS
    ]


def kernels(context: Context, *, program: str) -> Iterator[Row]:
    """The most expensive kernels of some calls, after one that compiles."""
    import jax

    run = _training(context) if program == "training" else _inference(context, program)
    run()
    folder = Path(context.folder) / "traces" / program
    shutil.rmtree(folder, ignore_errors=True)
    with jax.profiler.trace(str(folder)):
        for _ in range(_CALLS):
            run()
    (file,) = folder.rglob("*.xplane.pb")
    found = kernel_seconds(file)
    total = sum(seconds for seconds, _ in found.values())
    if not total:
        raise ValueError(f"{file} names no kernel: look at its planes with jax.profiler")
    launched = sum(count for _, count in found.values())
    yield Row(
        stage=_STAGE,
        what=f"{program}: device time of a call",
        value=total / _CALLS * 1e3,
        unit="ms",
        note=f"{launched / _CALLS:.0f} kernels of {len(found)} names",
    )
    ordered = sorted(found.items(), key=lambda item: -item[1][0])
    for name, (seconds, count) in ordered[: context.sizes.kernels]:
        yield Row(
            stage=_STAGE,
            what=f"{program}: {name[:80]}",
            value=seconds / _CALLS * 1e3,
            unit="ms",
            note=f"{seconds / total:.1%} of the time, {count / _CALLS:.0f} launches",
        )


def kernel_seconds(file: Path) -> Mapping[str, tuple[float, int]]:
    """Seconds and launches of each kernel of a trace, by name.

    On a device's plane every event of a stream is a kernel or a copy. On a CPU the operations are
    on the host's plane, told apart by their `hlo_op`. Lines that repeat the device's events, one
    for modules, one for steps, are left out.
    """
    import jax

    planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for plane in devices or planes:
        for line in plane.lines:
            if devices and not _holds_kernels(line.name):
                continue
            events = [
                (event.start_ns, event.duration_ns, event.name)
                for event in line.events
                if devices or _is_operation(event)
            ]
            for name, nanoseconds in own_times(events):
                sums[name][0] += nanoseconds / 1e9
                sums[name][1] += 1
    return {name: (seconds, int(count)) for name, (seconds, count) in sums.items()}


def own_times(events: Iterable[tuple[float, float, str]]) -> Iterator[tuple[str, float]]:
    """(name, duration without the events within) of a line's (start, duration, name).

    A loop's event covers those of its body.
    """
    open_events: list[list[Any]] = []
    for start, duration, name in sorted(events, key=lambda event: (event[0], -event[1])):
        while open_events and open_events[-1][0] <= start:
            yield tuple(open_events.pop()[1:])
        if open_events:
            open_events[-1][2] -= duration
        open_events.append([start + duration, name, duration])
    while open_events:
        yield tuple(open_events.pop()[1:])


def _holds_kernels(line: str) -> bool:
    # A GPU has its kernels on lines "Stream #1(Compute)", a TPU on "XLA Ops"; lines such as
    # "XLA Modules", "Steps" and "Framework Ops" cover the same time again.
    return line.startswith("Stream") or line == "XLA Ops"


def _is_operation(event: Any) -> bool:
    with warnings.catch_warnings():
        # Of jaxlib's own binding on newer Pythons.
        warnings.filterwarnings("ignore", "builtin type", DeprecationWarning)
        return any(name == "hlo_op" for name, _ in event.stats)


def _inference(context: Context, program: str) -> Callable[[], Any]:

    from tests.benchmarks.accelerator.speed import bench
    from tests.benchmarks.rivals.engines.engine import ENGINES, OURS
    from tests.benchmarks.rivals.inputs import make_inputs

    rows = min(context.sizes.batches[-1], _MOST_ROWS)
    settings = bench(context, {}, (), ()).settings
    engine = ENGINES[OURS].load(settings)
    return engine.call(program, make_inputs(settings.model_config(), settings, rows))


def _training(context: Context) -> Callable[[], Any]:
    preset, side, rows = context.sizes.training[0]
    return built(
        step_options(context, preset=preset, side=side, batch=rows, engine="ours", remat="none")
    )
