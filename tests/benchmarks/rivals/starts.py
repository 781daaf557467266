"""How long a first result takes in a fresh process: with nothing compiled yet, and with all."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.rivals.engines.engine import OURS, EngineInfo
from tests.benchmarks.rivals.processes import Worker, WorkerError
from tests.benchmarks.rivals.results import CaseResult, Row
from tests.benchmarks.rivals.rounds import Progress
from tests.benchmarks.rivals.samples import Sample
from tests.benchmarks.rivals.settings import Settings

_WARM_STARTS = 3
# The rivals compile for minutes what a whole answer takes: that is left to our own.
_CALLS = {"vision": False, "images": True}


def measure_starts(
    engines: Mapping[str, EngineInfo],
    settings: Settings,
    variables: Mapping[str, str],
    context: Mapping[str, Any],
    progress: Progress,
) -> Iterator[CaseResult]:
    """For each call three tables: with an empty compilation cache, with what that run left in it,
    and the latter less a later call of the same process, which is what starting costs.

    The time is from having the weights to having the first result.
    """
    for call, ours_alone in _CALLS.items():
        taking_part = {
            name: info
            for name, info in engines.items()
            if info.compiles
            and not info.missing()
            and settings.platform in info.platforms
            and (name == OURS or not ours_alone)
        }
        cold: dict[str, Row] = {}
        warm: dict[str, Row] = {}
        more: dict[str, Row] = {}
        for name, info in taking_part.items():
            try:
                first, *rest = _starts(name, info, settings, variables, call, progress)
            except WorkerError as error:
                failed = Row(label=info.label, note=f"failed: {error}")
                cold[name] = warm[name] = more[name] = failed
                continue
            cold[name] = Row.of(info.label, [first.whole])
            warm[name] = Row.of(info.label, [one.whole for one in rest])
            more[name] = Row.of(info.label, [one.starting for one in rest])
        for title, rows in (
            ("cold: compilation cache empty", cold),
            ("warm: from it", warm),
            ("warm, less a later call", more),
        ):
            yield CaseResult(
                case="start",
                title=f"first {call} of a process with its weights loaded, {title}",
                context=context,
                rows=rows,
            )


class _Start(NamedTuple):
    whole: Sample  # the first call
    starting: Sample  # its share that a later call does not take


def _starts(
    name: str,
    info: EngineInfo,
    settings: Settings,
    variables: Mapping[str, str],
    call: str,
    progress: Progress,
) -> list[_Start]:
    """One cold start and then the warm ones."""
    starts = []
    with tempfile.TemporaryDirectory() as folder:
        own = dict(variables) | {
            "FLORENCE_JAX_COMPILATION_CACHE": str(Path(folder) / "jax"),
            "TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "inductor"),
        }
        # It would decide instead.
        own.pop("JAX_COMPILATION_CACHE_DIR", None)
        own_settings = dataclasses.replace(settings, cache=folder)
        for _ in range(1 + _WARM_STARTS):
            progress(name, f"start {call}")
            with Worker(info, own_settings, own) as worker:
                output = str(Path(folder) / "output.npy")
                first = Sample(**worker.ask(do="check", call=call, batch=1, output=output))
                later = Sample(**worker.ask(do="time", call=call, batch=1))
                starts.append(_Start(first, first.beyond(later)))
    return starts
