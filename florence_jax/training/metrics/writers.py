"""Where a run's metrics are written: metrics.jsonl, TensorBoard, and experiment trackers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from florence_jax.runtime.jsonl import append_lines
from florence_jax.training.config_loader import to_tree
from florence_jax.training.run_config import RunConfig


class MetricsWriter(Protocol):
    """Writes the metrics of a step somewhere."""

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Write all `values` before this returns.

        Args:
            kind: "train", "evaluation" and so on.
            values: Values by name; most are numbers.

        Raises:
            OSError: they cannot be written, as on a full disk; the next call may succeed.
        """
        ...

    def write_pictures(self, step: int, paths: Sequence[Path]) -> None:
        """Write drawn answers, which are PNG files in RUN/samples.

        Raises:
            OSError: as `write`.
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

    def write_pictures(self, step: int, paths: Sequence[Path]) -> None:
        pass  # They lie beside it.

    def close(self) -> None:
        pass


def open_writers(
    directory: Path,
    config: RunConfig,
    *,
    first: int,
    shared: bool,
    say: Callable[[str], None],
) -> list[MetricsWriter]:
    """The writers that the settings ask for.

    Args:
        directory: where this process logs.
        first: the step that the run starts or goes on at.
        shared: whether this process writes what the run has once, and not each of its processes.
        say: tells a person what could not be opened.
    """
    writers: list[MetricsWriter] = [JsonlWriter(directory / "metrics.jsonl")]
    if not shared:
        return writers
    if config.logging.tensorboard:
        # Here and not above: tensorboardX imports torch where it is installed.
        from florence_jax.training.metrics.tensorboard import TensorBoardWriter

        writers.append(TensorBoardWriter(directory / "tensorboard", first=first))
    if config.logging.has_trackers:
        from florence_jax.training.metrics.trackers import open_trackers

        writers += open_trackers(config.logging, directory, settings=to_tree(config), say=say)
    return writers
