"""The logs of a run: a progress bar or lines for people, writers of its metrics, unusable rows."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from florence_jax.runtime.jsonl import append_lines, read_lines
from florence_jax.training.metrics.goodput import Cause, Goodput
from florence_jax.training.metrics.writers import MetricsWriter

# So that one bad row among the first ten does not look like a tenth of the data.
_LEAST_SEEN = 1000


class RunLog:
    """The log of one run; use it as a context manager.

    A terminal shows a bar; a file or a pipe gets a line for each line of metrics.jsonl instead.
    That a log cannot be written, as on a full disk, is said once and does not end the run.
    """

    def __init__(
        self,
        writers: Sequence[MetricsWriter],
        *,
        first: int,
        steps: int,
        peak_flops: float,
        starting: float = 0.0,
    ):
        """
        Args:
            writers: get every figure; closed at the end.
            first: the step that the run starts or goes on at.
            steps: Number of steps of the whole run.
            peak_flops: FLOP/s of all devices; 0 shows no MFU.
            starting: seconds that passed before, since the run was called.
        """
        self._peak, self._writers = peak_flops, writers
        self.goodput = Goodput(starting)
        self._first, self._steps_in_all = first, steps
        self._bar = tqdm(
            total=steps,
            initial=first,
            unit="step",
            dynamic_ncols=True,
            file=_Terminal(),
            disable=not _is_terminal(),
        )
        self._said: set[str] = set()
        self._started = time.perf_counter()
        self._restart()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception: object) -> None:
        for writer in self._writers:
            with self.reporting():
                writer.close()
        self._bar.close()

    @property
    def seconds(self) -> float:
        """Since the log was opened."""
        return time.perf_counter() - self._started

    def count(self, *, tokens: int, images: int, flops: float) -> None:
        """One more step was asked of the device."""
        self._tokens += tokens
        self._images += images
        self._flops += flops
        self._steps += 1
        self._bar.update()

    @contextlib.contextmanager
    def pause(self, cause: Cause) -> Iterator[None]:
        """Leave the time that is spent inside out of the rates, because it is no training."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.leave_out(time.perf_counter() - began, cause)

    def leave_out(self, seconds: float, cause: Cause) -> None:
        """Leave time that was measured elsewhere out of the rates."""
        self._since += seconds
        self.goodput.lose(seconds, cause)

    def training(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics of the steps since the last such line, and their rates."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        rates = {
            "tokens_per_second": self._tokens / seconds,
            "images_per_second": self._images / seconds,
            "seconds_per_step": seconds / max(self._steps, 1),
        }
        if self._peak:
            rates["mfu"] = self._flops / seconds / self._peak
        self.goodput.steps(rates["seconds_per_step"], self._steps)
        rates["goodput"] = self.goodput.share
        self._restart()
        shown = {
            "loss": f"{values['loss']:.4f}",
            "lr": f"{values['learning_rate']:.2e}",
            "tok/s": f"{rates['tokens_per_second']:.0f}",
            "img/s": f"{rates['images_per_second']:.1f}",
        }
        if "mfu" in rates:
            shown["MFU"] = f"{rates['mfu']:.1%}"
        if self._bar.disable:
            say(self._line(step, shown))
        self._bar.set_postfix(shown)
        self.write("train", step, {**values, **rates})

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Write metrics to all writers."""
        for writer in self._writers:
            with self.reporting():
                writer.write(kind, step, values)

    def pictures(self, step: int, directory: Path) -> None:
        """Hand the pictures in a directory to all writers."""
        paths = sorted(directory.glob("*.png"))
        for writer in self._writers if paths else ():
            with self.reporting():
                writer.write_pictures(step, paths)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._bar.disable:
            say(text)
        else:
            self._bar.write(text, file=_Terminal())

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Report once that a log cannot be written inside; a log is for people and ends no run."""
        try:
            yield
        except OSError as error:
            if str(error) not in self._said:
                self._said.add(str(error))
                self.say(f"the log cannot be written: {error}; the run goes on")

    def _line(self, step: int, shown: Mapping[str, str]) -> str:
        seconds = self.goodput.productive + self.goodput.lost["data"]
        left = seconds / max(step - self._first, 1) * (self._steps_in_all - step)
        values = ", ".join(f"{name} {value}" for name, value in shown.items())
        return f"step {step} of {self._steps_in_all}: {values}, {tqdm.format_interval(left)} left"

    def _restart(self) -> None:
        self._since = time.perf_counter()
        self._tokens = self._images = self._steps = 0
        self._flops = 0.0


def say(text: str) -> None:
    """A line to the terminal, before and after there is a log."""
    print(text, file=_Terminal(), flush=True)


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # pythonw has none, and a closed one cannot be asked
        return False


class _Terminal:
    """Standard error; often a file on the very disk that is full, which must not end a run."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


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


class TooManyProblems(RuntimeError):
    """More rows than allowed could not be used."""


class BadRowLog:
    """RUN/quarantine.jsonl: `{"id": ..., "reason": ..., "split": ...}`, one line a row."""

    def __init__(self, path: Path, *, share: float, total: int):
        """
        Args:
            share: the share of rows that may be unusable.
            total: the number of rows in the data.
        """
        self.path, self._share, self._total = path, share, total
        self._training: dict[str, str] = {}
        # Only rows met since the start count: after a kill, data may have been mended.
        self._met: dict[str, str] = {}
        self._known: set[tuple[str, str]] = set()
        self._unwritten: list[dict[str, str]] = []
        for row in read_lines(path):
            self._note(row["split"], row["id"], row["reason"])

    def __len__(self) -> int:
        """The number of unusable rows of the training data so far."""
        return len(self._training)

    def add(self, problems: Iterable[tuple[str, str]], *, split: str = "train") -> None:
        """Write down the (id, reason) that are new.

        Raises:
            OSError: the file cannot be written; the next call tries again.
        """
        for row, reason in problems:
            if split == "train":
                self._met.setdefault(row, reason)
            if (split, row) not in self._known:
                self._note(split, row, reason)
                self._unwritten.append({"id": row, "reason": reason, "split": split})
        if self._unwritten:
            append_lines(self.path, self._unwritten)
            self._unwritten.clear()

    def check(self, seen: int) -> None:
        """
        Args:
            seen: rows that this process has drawn since the log was opened.

        Raises:
            TooManyProblems: the share is exceeded.
        """
        allowed = self._share * min(self._total, max(seen, _LEAST_SEEN))
        if len(self._met) > allowed:
            row, reason = next(iter(self._met.items()))
            raise TooManyProblems(
                f"{len(self._met)} rows of {min(seen, self._total)} seen could not be used, more "
                f"than data.quarantine_share={self._share:g} allows; the first is {row}: {reason}. "
                f"All are in {self.path}: mend the data, or raise data.quarantine_share"
            )

    def _note(self, split: str, row: str, reason: str) -> None:
        self._known.add((split, row))
        if split == "train":
            self._training[row] = reason
