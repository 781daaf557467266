"""The whole measurement: weights, workers, ceilings, cases, one after the other."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.ceilings import Ceilings
from tests.benchmarks.rivals import machine
from tests.benchmarks.rivals.cases import (
    CASES,
    START,
    case_samples,
    floor_seconds,
    parts,
    title,
)
from tests.benchmarks.rivals.ceilings import measure_ceilings
from tests.benchmarks.rivals.engines.engine import OURS, EngineInfo
from tests.benchmarks.rivals.processes import Malloc, Worker, WorkerError, environment
from tests.benchmarks.rivals.results import CaseResult, Row
from tests.benchmarks.rivals.rounds import Asked, Progress, Redirected, check, time_in_turns
from tests.benchmarks.rivals.settings import Settings
from tests.benchmarks.rivals.starts import measure_starts
from tests.benchmarks.rivals.weights import prepare_weights

# What is measured again with the system's own malloc, which large allocations are sensitive to.
_CASES_OF_DEFAULT_MALLOC = ("vision", "images")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What to measure.

    Attributes:
        model: preset, checkpoint directory or hub id.
        settings: what every engine is told; without `weights`, these and `cache` are filled in.
        engines: by name.
        cases: names in `cases.CASE_NAMES`.
        batches: images in a call; every case is measured with each.
        rounds: timed calls of each engine.
        malloc: "tuned", "default", or "both": the second for a few cases and the engines that
            matter there.
        folder: where weights, and what engines make of them, are kept.
        ceilings: the machine's, measured before; None measures them here.
        start: makes an engine's worker.
        together: all engines load their weights at the same time, which takes as many processors.
    """

    model: str
    settings: Settings
    engines: Mapping[str, EngineInfo]
    cases: Sequence[str]
    batches: Sequence[int]
    rounds: int
    malloc: str
    folder: Path
    ceilings: Ceilings | None = None
    start: Callable[[EngineInfo, Settings, dict[str, str]], Worker] = Worker
    together: bool = False

    def run(self, progress: Progress) -> Iterator[CaseResult]:
        """Each case's result as soon as it is there.

        Raises:
            ValueError: the model cannot be loaded.
        """
        bench = self
        if not self.settings.weights:
            progress("weights", self.model)
            weights = str(prepare_weights(self.model, self.settings.seed, self.folder))
            settings = dataclasses.replace(self.settings, weights=weights, cache=weights)
            bench = dataclasses.replace(self, settings=settings)
        settings = bench.settings
        first: Malloc = "default" if self.malloc == "default" else "tuned"
        fastest = {OURS}
        # Starts have processes of their own, and no ceiling.
        warm = () if set(self.cases) == {START} else bench._measure(first, progress)
        for result in warm:
            rival = result.fastest_rival()
            if result.case in _CASES_OF_DEFAULT_MALLOC and rival is not None:
                fastest.add(rival)
            yield result
        if self.malloc == "both":
            again = dataclasses.replace(
                bench,
                engines={name: info for name, info in self.engines.items() if name in fastest},
                cases=[name for name in self.cases if name in _CASES_OF_DEFAULT_MALLOC],
            )
            if again.cases:
                yield from again._measure("default", progress)
        if START in self.cases:
            variables = environment(settings, first)
            context = bench._context(first, 1, None)
            yield from measure_starts(self.engines, settings, variables, context, progress)

    def _measure(self, malloc: Malloc, progress: Progress) -> Iterator[CaseResult]:
        with contextlib.ExitStack() as stack:
            workers: dict[str, Worker] = {}
            notes: dict[str, str] = {}
            absent = {name: _absent(info, self.settings) for name, info in self.engines.items()}
            notes |= {name: note for name, note in absent.items() if note is not None}
            variables = environment(self.settings, malloc)
            started = (
                (name, self.start(info, self.settings, variables))
                for name, info in self.engines.items()
                if name not in notes
            )
            for name, worker in list(started) if self.together else started:
                progress(name, "start")
                try:
                    workers[name] = stack.enter_context(worker)
                except WorkerError as error:
                    notes[name] = f"failed: {error}"
            ceilings = self.ceilings
            if ceilings is None:
                ceilings, row_results = measure_ceilings(
                    workers, self.engines, self.settings, self.rounds, progress
                )
                for result in row_results:
                    yield dataclasses.replace(result, context=self._context(malloc, 1, ceilings))
            for batch in self.batches:
                for names in _groups(self.cases):
                    yield from self._measure_group(
                        names, batch, malloc, workers, notes, ceilings, progress
                    )

    def _measure_group(
        self,
        names: Sequence[str],
        batch: int,
        malloc: Malloc,
        workers: Mapping[str, Worker],
        notes: Mapping[str, str],
        ceilings: Ceilings | None,
        progress: Progress,
    ) -> Iterator[CaseResult]:
        """Cases that share calls."""
        settings = self.settings
        calls = list(dict.fromkeys(call for name in names for call in CASES[name].calls))
        taking_part, labels, noted = self._participants(names[0], workers, notes)
        compared_as = {name: info.compared_as for name, info in self.engines.items()}
        for call in calls:
            found = check(taking_part, call, batch, settings.dtype, compared_as, progress)
            for name, problem in found.items():
                if problem is not None:
                    del taking_part[name]
                    if problem:
                        noted[name] = problem
        samples, failures = time_in_turns(taking_part, calls, batch, self.rounds, progress)
        noted |= failures
        for name in names:
            rows = {engine: Row(label=labels[engine], note=note) for engine, note in noted.items()}
            for engine, rounds in samples.items():
                if engine not in noted:
                    rows[engine] = Row.of(labels[engine], case_samples(name, settings, rounds))
            work = parts(name, settings, batch)
            yield CaseResult(
                case=name,
                title=title(name, settings),
                context=self._context(malloc, batch, ceilings),
                rows=rows,
                floor=ceilings and floor_seconds(name, settings, batch, ceilings),
                gflop=sum(part.flops for part in work) / 1e9,
                images=batch if name == "images" else None,
            )

    def _participants(
        self, case: str, workers: Mapping[str, Worker], notes: Mapping[str, str]
    ) -> tuple[dict[str, Asked], dict[str, str], dict[str, str]]:
        """Who is asked, everybody's label, and notes on those who cannot be asked."""
        ways = CASES[case].ways
        if ways is None:
            labels = {name: info.label for name, info in self.engines.items()}
            return dict(workers), labels, dict(notes)
        if OURS not in workers:
            return {}, {}, {}
        names = (OURS, *list(ways)[1:])
        asked = {
            name: Redirected(workers[OURS], call) for name, call in zip(names, ways, strict=True)
        }
        return dict(asked), dict(zip(names, ways.values(), strict=True)), {}

    def _context(self, malloc: Malloc, batch: int, ceilings: Ceilings | None) -> dict[str, Any]:
        settings = self.settings
        return {
            "model": self.model,
            "device": settings.platform,
            "dtype": settings.dtype,
            "batch": batch,
            "image_size": settings.image_size,
            "new_tokens": settings.new_tokens,
            "threads": settings.threads,
            "malloc": malloc,
            "seed": settings.seed,
            "ceilings": None if ceilings is None else ceilings.to_json(),
            "machine": machine.describe(),
        }


def _absent(info: EngineInfo, settings: Settings) -> str | None:
    """Why an engine cannot take part, or None."""
    if settings.platform not in info.platforms:
        return f"does not run on {settings.platform}"
    missing = info.missing()
    if missing:
        return f'not installed ({", ".join(missing)}): pip install -e ".[bench]"'
    return None


def _groups(cases: Sequence[str]) -> list[list[str]]:
    """The chosen cases in their order, "beam" and "step" together: they share calls."""
    groups: list[list[str]] = []
    for name in CASES:
        if name not in cases:
            continue
        if name == "step" and "beam" in cases:
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups
