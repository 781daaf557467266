"""Trace some steps of a run with `jax.profiler`."""

from pathlib import Path

import jax


class Profile:
    """Traces `steps` steps from the third on, because the first two compile and warm up."""

    def __init__(self, directory: Path, first: int, steps: int):
        self._directory, self._first, self._steps = directory, first + 2, steps
        self._running = False

    def at(self, step: int) -> None:
        """Start or stop the trace before `step`."""
        if self._steps and step == self._first:
            jax.profiler.start_trace(str(self._directory))
            self._running = True
        elif step == self._first + self._steps:
            self.stop()

    def stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
