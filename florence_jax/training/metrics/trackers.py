"""Experiment trackers: Weights & Biases, trackio and MLflow, each a `MetricsWriter`.

A resumed run goes on in the tracker's own run, whose id is kept in RUN/trackers.json. What goes
wrong in a tracker is said once; the run goes on without it, and metrics.jsonl has everything.
"""

import importlib.util
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence_jax.runtime.atomic_file import atomic_write
from florence_jax.runtime.text_file import MAX_SETTINGS_BYTES, read_json
from florence_jax.training.metrics.writers import MetricsWriter
from florence_jax.training.run_config import LoggingConfig

_IDS = "trackers.json"
_WANDB_SECONDS = 30
# MLflow refuses longer values of parameters, other characters in names, and larger requests.
_MLFLOW_VALUE = 6000
_MLFLOW_NAME = re.compile(r"[^\w\-. :/]")
_MLFLOW_PARAMETERS = 100


class TrackerError(OSError):
    """A tracker failed; the message names it."""


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """What a tracker is told of the run.

    Attributes:
        directory: the run's own.
        settings: the run's, as nested objects, which trackers show beside the figures.
        known: the id of the tracker's run that a resumed run goes on in; None for a new one.
        say: tells a person something.
    """

    directory: Path
    settings: Mapping[str, Any]
    known: str | None
    say: Callable[[str], None]


def check_packages(config: LoggingConfig) -> None:
    """Refuse trackers whose packages are missing, before a run begins.

    Raises:
        ValueError: names the setting and the package.
    """
    for kind in _KINDS:
        project = getattr(config, kind.setting)
        if project and importlib.util.find_spec(kind.setting) is None:
            raise ValueError(
                f"logging.{kind.setting}={project} needs the package {kind.setting}, which is not "
                f"installed: pip install {kind.setting}"
            )


def open_trackers(
    config: LoggingConfig,
    directory: Path,
    *,
    settings: Mapping[str, Any],
    say: Callable[[str], None],
) -> list[MetricsWriter]:
    """The trackers that `config` names; one that cannot be opened is said and left out.

    Args:
        directory: the run's own.
        settings: the run's settings as nested objects, which trackers show beside the figures.
    """
    path = directory / _IDS
    trackers: list[MetricsWriter] = []
    for kind in _KINDS:
        project = getattr(config, kind.setting)
        if not project:
            continue
        try:
            ids = read_json(path, max_bytes=MAX_SETTINGS_BYTES) if path.exists() else {}
            known = ids.get(kind.setting)
            run = RunIdentity(directory=directory, settings=settings, known=known, say=say)
            writer = kind(project, run)
            atomic_write(path, json.dumps({**ids, kind.setting: writer.run_id}, indent=1))
        # Networks, credentials, servers and disks fail in as many types as there are libraries.
        except Exception as error:
            say(
                f"note: {kind.name} cannot be used ({_sentence(error)}); the run goes on without "
                f"it, and {directory / 'metrics.jsonl'} has every figure. {kind.remedy}"
            )
            continue
        trackers.append(_Guarded(kind.name, writer))
    return trackers


class WandbWriter:
    """A run of Weights & Biases; what cannot be sent now is kept in RUN/wandb to be sent later."""

    setting, name = "wandb", "Weights & Biases"
    remedy = "Log in with `wandb login`, or set WANDB_MODE=offline and use `wandb sync` later."

    def __init__(self, project: str, run: RunIdentity):
        import wandb  # pyright: ignore[reportMissingImports]

        self._wandb, self.run_id = wandb, run.known or uuid.uuid4().hex[:12]

        def begin(**more: Any) -> Any:
            return wandb.init(
                project=project,
                name=run.directory.name,
                id=self.run_id,
                resume="allow",
                dir=str(run.directory),
                config=dict(run.settings),
                settings=wandb.Settings(init_timeout=_WANDB_SECONDS, silent=True, console="off"),
                **more,
            )

        try:
            self._run = begin()
        except wandb.Error as error:
            self._run = begin(mode="offline")
            run.say(
                f"note: {self.name} cannot be reached ({_sentence(error)}); figures are kept, send "
                f"them later with `wandb sync --append {run.directory}/wandb/offline-run-*`"
            )
        # Steps may come again after a resume, which wandb's own counter would refuse.
        self._run.define_metric("*", step_metric="step")

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        self._run.log({"step": step, **_numbers(kind, values)})

    def write_pictures(self, step: int, paths: Sequence[Path]) -> None:
        pictures = [self._wandb.Image(str(path), caption=path.stem) for path in paths]
        self._run.log({"step": step, "samples": pictures})

    def close(self) -> None:
        self._run.finish()


class TrackioWriter:
    """A run of trackio; its data lie where TRACKIO_DIR says."""

    setting, name = "trackio", "trackio"
    remedy = "Set TRACKIO_DIR to a directory that can be written."

    def __init__(self, project: str, run: RunIdentity):
        import trackio

        self._trackio = trackio
        self.run_id = run.known or f"{run.directory.name}-{uuid.uuid4().hex[:6]}"
        self._run = trackio.init(
            project,
            name=self.run_id,
            config=_flat(run.settings),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        self._run.log(_numbers(kind, values), step=step)

    def write_pictures(self, step: int, paths: Sequence[Path]) -> None:
        pictures = {
            f"samples/{path.stem}": self._trackio.Image(path, caption=path.stem) for path in paths
        }
        self._run.log(pictures, step=step)

    def close(self) -> None:
        self._run.finish()


class MlflowWriter:
    """A run of MLflow; on the server of MLFLOW_TRACKING_URI, or in RUN/mlflow.db without one."""

    setting, name = "mlflow", "MLflow"
    remedy = "Check MLFLOW_TRACKING_URI and its credentials."

    def __init__(self, project: str, run: RunIdentity):
        from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        server = os.environ.get("MLFLOW_TRACKING_URI")
        here = run.directory.resolve()
        self._metric = Metric
        self._client = MlflowClient(server or f"sqlite:///{here / 'mlflow.db'}")
        known = run.known
        if known is None:
            found = self._client.get_experiment_by_name(project)
            # A server says itself where pictures lie.
            pictures = None if server else (here / "mlflow").as_uri()
            experiment = (
                found.experiment_id
                if found
                else self._client.create_experiment(project, artifact_location=pictures)
            )
            known = self._client.create_run(experiment, run_name=run.directory.name).info.run_id
            values = [
                Param(_MLFLOW_NAME.sub("_", name), str(value)[:_MLFLOW_VALUE])
                for name, value in _flat(run.settings).items()
            ]
            for first in range(0, len(values), _MLFLOW_PARAMETERS):
                self._client.log_batch(known, params=values[first : first + _MLFLOW_PARAMETERS])
        else:
            self._client.update_run(known, status="RUNNING")
        self.run_id = known

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        now = int(time.time() * 1000)
        metrics = [
            self._metric(_MLFLOW_NAME.sub("_", name), value, now, step)
            for name, value in _numbers(kind, values).items()
        ]
        self._client.log_batch(self.run_id, metrics=metrics)

    def write_pictures(self, step: int, paths: Sequence[Path]) -> None:
        for path in paths:
            self._client.log_artifact(self.run_id, str(path), f"samples/step_{step:08d}")

    def close(self) -> None:
        self._client.set_terminated(self.run_id)


_KINDS = (WandbWriter, TrackioWriter, MlflowWriter)


class _Guarded:
    """A tracker that is left alone after its first failure."""

    def __init__(self, name: str, writer: MetricsWriter):
        self._name, self._writer, self._failed = name, writer, False

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        with self._attempt():
            if not self._failed:
                self._writer.write(kind, step, values)

    def write_pictures(self, step: int, paths: Sequence[Path]) -> None:
        with self._attempt():
            if not self._failed and paths:
                self._writer.write_pictures(step, paths)

    def close(self) -> None:
        with self._attempt():
            if not self._failed:
                self._writer.close()

    @contextmanager
    def _attempt(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._failed = True
            raise TrackerError(
                f"{self._name} failed ({_sentence(error)}) and gets nothing more"
            ) from error


def _numbers(kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among the values, by "KIND/NAME"."""
    return {
        f"{kind}/{name}": float(value)
        for name, value in values.items()
        if isinstance(value, int | float)
    }


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else None
        flat |= {f"{before}{name}": value} if inner is None else inner
    return flat


def _sentence(error: Exception) -> str:
    """The first line of what it says, which may be a page."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]:.200}" if lines else type(error).__name__
