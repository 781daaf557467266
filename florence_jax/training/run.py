"""`Run`: what the loop asks of a task, and `prepare_run`, which chooses the task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from florence_jax.runtime.signals import Interruption
from florence_jax.training.config import TrainConfig
from florence_jax.training.data.loader import DataLoader
from florence_jax.training.prepare import TrainSetup
from florence_jax.training.run_config import RunConfig
from florence_jax.training.state import Batch, Flat, TrainState

# Digests of the files of a run's training rows, by which a resumed run notices changed data.
Pins = dict[str, dict[str, Any]]


class Evaluator(Protocol):
    """Scores parameters on the validation data.

    Attributes:
        sources: the validation data by name; empty where there are none.
        problems: (id, reason) of the rows that could not be used, by the last call.
    """

    sources: Mapping[str, Any]
    problems: list[tuple[str, str]]

    def __call__(self, params: Flat, samples: Path, *, is_before: bool = False) -> dict[str, float]:
        """Every figure by name; drawings of some answers go to the directory `samples`.

        Args:
            params: by path, on the run's mesh.
            samples: the directory.
            is_before: no step was taken yet.
        """
        ...


class Counts(NamedTuple):
    """What one batch of a process's share holds, for the rates of the log.

    Attributes:
        labels: labels that count.
        images: images.
        flops: FLOPs of the update, of all processes.
    """

    labels: int
    images: int
    flops: float


class Run(ABC):
    """A run whose settings, model and data fit together; nothing is written yet.

    Attributes:
        setup: the step and its parts.
        rows: rows of an epoch.
        notes: sentences on the data for the user.
    """

    setup: TrainSetup
    rows: int
    notes: Sequence[str]

    @property
    def config(self) -> RunConfig:
        """The settings, with the steps that the epochs come to."""
        return self.setup.config

    @abstractmethod
    def at(self, files: Path) -> "Run":
        """The same run whose model's files are in another directory."""

    @abstractmethod
    def pin(self) -> Pins:
        """{"rows": {source: rows}, "files": {file: sha256}} of the training data."""

    @abstractmethod
    def first_parameters(self) -> Flat:
        """The parameters that training begins with, float32, on the run's mesh."""

    @abstractmethod
    def loader(self, state: TrainState) -> DataLoader:
        """The batches of this process."""

    @abstractmethod
    def evaluator(
        self,
        interruption: Interruption,
        *,
        say: Callable[[str], None],
        drawing: Callable[[], AbstractContextManager],
    ) -> Evaluator:
        """What scores the parameters; see `Evaluation`."""

    @abstractmethod
    def count(self, batch: Batch) -> Counts:
        """The sizes of this process's share of a batch."""

    @abstractmethod
    def export(self, state: TrainState, directory: Path | None = None) -> list[Path]:
        """Write what the run trained, from a state in its true shapes; returns the paths.

        Args:
            directory: by default RUN/export.
        """


def prepare_run(config: RunConfig, files: Path, *, resumed: bool = False) -> Run:
    """Open the data, read the model's sizes and build the step; nothing is computed.

    Args:
        files: A directory for the files that a run needs beside weights.
        resumed: The files of a run that has begun are there already.

    Raises:
        DataError, CheckpointError, RuleError, ValueError, OSError: what does not fit.
    """
    # Here and not above: each task's modules use those of a run.
    if isinstance(config, TrainConfig):
        from florence_jax.training.florence2_run import Florence2Run
        from florence_jax.training.prepare import prepare

        return Florence2Run(prepare(config, files, resumed=resumed))
    from florence_jax.training.images.run import prepare_images

    return prepare_images(config, files, resumed=resumed)
