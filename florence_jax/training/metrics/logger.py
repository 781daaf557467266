"""The log of a run: a progress bar or lines for people, and writers of its metrics."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from florence_jax.runtime.jsonl import append_lines
from florence_jax.training.config import LoggingConfig


class MetricsWriter(Protocol):
    """Writes the metrics of a step somewhere."""

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Write all `values` before this returns.

        Args:
            kind: "train", "evaluation" and so on.
            values: by name; most are numbers.

        Raises:
            OSError: they cannot be written, as on a full disk; the next call may succeed.
        """
        ...

    def close(self) -> None:
        """Release what is held open."""
        ...


class JsonlWriter:
    """One JSON line `{"kind": ..., "step": ..., NAME: VALUE, ...}` for each call."""

    def __init__(self, path: Path):
        self._path = path

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        append_lines(self._path, [{"kind": kind, "step": step, **values}])

    def close(self) -> None:
        pass


class RunLog:
    """The log of one run; use it as a context manager.

    A terminal shows a bar; a file or a pipe gets a line for each line of metrics.jsonl instead.
    That a log cannot be written, as on a full disk, is said once and does not end the run.
    """

    def __init__(
        self, directory: Path, config: LoggingConfig, *, first: int, steps: int, peak_flops: float
    ):
        """
        Args:
            first: the step that the run starts or goes on at.
            steps: of the whole run.
            peak_flops: FLOP/s of all devices; 0 shows no MFU.
        """
        self._peak = peak_flops
        self._writers: list[MetricsWriter] = [JsonlWriter(directory / "metrics.jsonl")]
        if config.tensorboard:
            # Here and not above: tensorboardX imports torch where it is installed.
            from florence_jax.training.metrics.tensorboard import TensorBoardWriter

            self._writers.append(TensorBoardWriter(directory / "tensorboard", first=first))
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
    def pause(self) -> Iterator[None]:
        """What is done inside is no training: the rates leave its time out."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - began

    def leave_out(self, seconds: float) -> None:
        """As `pause`, for time that was measured elsewhere."""
        self._since += seconds

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

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._bar.disable:
            say(text)
        else:
            self._bar.write(text, file=_Terminal())

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """What is written inside is for people: that it cannot be is said once and ends nothing."""
        try:
            yield
        except OSError as error:
            if str(error) not in self._said:
                self._said.add(str(error))
                self.say(f"the log cannot be written: {error}; the run goes on")

    def _line(self, step: int, shown: Mapping[str, str]) -> str:
        left = self.seconds / max(step - self._first, 1) * (self._steps_in_all - step)
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
