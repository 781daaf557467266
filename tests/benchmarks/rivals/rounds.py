"""Several engines side by side: compared first, then timed in turns."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tests.benchmarks.rivals.compare import difference, likelihood_difference
from tests.benchmarks.rivals.engines.engine import OURS
from tests.benchmarks.rivals.processes import WorkerError
from tests.benchmarks.rivals.samples import Sample


class Asked(Protocol):
    """A `Worker`, as far as it is needed here."""

    def ask(self, **request: Any) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Redirected:
    """A worker that is asked for one call whatever the request says: a way of doing the same."""

    worker: Asked
    call: str

    def ask(self, **request: Any) -> dict[str, Any]:
        return self.worker.ask(**request | {"call": self.call})


# A worker's name and the call that it is at.
Progress = Callable[[str, str], None]


def check(
    workers: Mapping[str, Asked],
    call: str,
    batch: int,
    dtype: str,
    compared_as: Mapping[str, Mapping[str, str]],
    progress: Progress,
) -> dict[str, str | None]:
    """Run `call` once in every worker and compare the results with ours.

    Args:
        workers: by name.
        call, batch, dtype: what they are asked.
        compared_as: of workers that cannot give our result of some call, the call to compare.
        progress: told before each run.

    Returns:
        For each worker None where it may be timed, "" where it does not offer the call, otherwise
        what is wrong, in a sentence.
    """
    found: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        runs = _Runs(workers, batch, Path(folder), progress)
        # Ours first: the others are compared with it.
        for name in sorted(workers, key=lambda name: name != OURS):
            try:
                theirs = runs.output(name, call)
                if theirs is None:
                    found[name] = ""
                elif name == OURS or OURS not in workers:
                    found[name] = None
                elif found[OURS] is not None:
                    found[name] = "not compared: our own call failed"
                else:
                    compared = compared_as.get(name, {}).get(call, call)
                    found[name] = _mismatch(runs, name, compared, dtype)
            except WorkerError as error:
                found[name] = f"failed: {error}"
    return found


def time_in_turns(
    workers: Mapping[str, Asked],
    calls: Sequence[str],
    batch: int,
    rounds: int,
    progress: Progress,
) -> tuple[dict[str, dict[str, list[Sample]]], dict[str, str]]:
    """`rounds` samples of each call of each worker, the order reversed every other round.

    Returns:
        (samples by worker and call, failures by worker).
    """
    samples = {name: {call: [] for call in calls} for name in workers}
    failures: dict[str, str] = {}
    order = list(workers)
    for _, names in zip(range(rounds), itertools.cycle((order, order[::-1])), strict=False):
        for name, call in itertools.product(names, calls):
            if name in failures:
                continue
            progress(name, call)
            try:
                answer = workers[name].ask(do="time", call=call, batch=batch)
            except WorkerError as error:
                failures[name] = f"failed: {error}"
            else:
                samples[name][call].append(Sample(**answer))
    return samples, failures


class _Runs:
    """Results of first runs, each made when it is asked for."""

    def __init__(self, workers: Mapping[str, Asked], batch: int, folder: Path, progress: Progress):
        self.workers, self.batch = workers, batch
        self._folder, self._progress = folder, progress
        self._files: dict[tuple[str, str], Path | None] = {}

    def output(self, name: str, call: str) -> Path | None:
        """The file with a worker's result; None where it does not offer the call."""
        if (name, call) not in self._files:
            self._progress(name, call)
            file = self._folder / f"{len(self._files)}.npy"
            answer = self.workers[name].ask(
                do="check", call=call, batch=self.batch, output=str(file)
            )
            self._files[name, call] = None if answer.get("not_offered") else file
        return self._files[name, call]


def _mismatch(runs: _Runs, name: str, call: str, dtype: str) -> str | None:
    files = runs.output(OURS, call), runs.output(name, call)
    assert all(files), f"{name} and {OURS} must both offer {call!r}, which is compared"
    ours, theirs = (np.load(file) for file in files if file is not None)
    found = difference(ours, theirs, dtype)
    answers = np.issubdtype(ours.dtype, np.integer) and ours.shape == theirs.shape
    if found is not None and dtype != "float32" and answers:
        likelihoods = [
            runs.workers[OURS].ask(do="judge", call=call, batch=runs.batch, tokens=str(file))
            for file in files
        ]
        found = likelihood_difference(
            *(np.array(answer["log_likelihood"]) for answer in likelihoods)
        )
    return None if found is None else f"MISMATCH, not timed: {found}"
