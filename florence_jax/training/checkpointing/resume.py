"""A run's directory: begin or resume it, restore its state, and save checkpoints, the best too."""

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from florence_jax.runtime.text_file import MAX_SETTINGS_BYTES, read_json
from florence_jax.training.checkpointing.manager import Checkpoints
from florence_jax.training.config_loader import differences, to_tree
from florence_jax.training.data.example import DataError
from florence_jax.training.data.sources import OpenedData
from florence_jax.training.data.storage import Place, local_copy
from florence_jax.training.distributed import (
    broadcast_bool,
    first_on_machine,
    is_first,
    wait_for_all,
)
from florence_jax.training.metrics.judge import LOSSES
from florence_jax.training.metrics.logger import say
from florence_jax.training.prepare import TrainSetup
from florence_jax.training.run import Pins
from florence_jax.training.run_config import ReadingConfig, RunConfig
from florence_jax.training.settings import CheckpointConfig
from florence_jax.training.state import Flat, TrainState, drop_frozen

CONFIG = "config.json"
DATA = "data.json"
PROCESSOR = "processor"

# What may change between a run and its continuation: none of it touches the updates.
_RESUMABLE = ("checkpoint", "evaluation", "logging", "export", "directory", "mesh", "rules")
_RESUMABLE_DATA = ("threads", "workers", "quarantine_share", "valid", "changed")


class RunError(RuntimeError):
    """A run that cannot start, go on, or end well; the message says what to do."""


def has_begun(directory: Path) -> bool:
    """Whether a run's directory holds a checkpoint to go on from."""
    return bool(_steps(directory))


def begin(config: RunConfig, directory: Path, files: Path, pin: Callable[[], Pins]) -> None:
    """Write down what a run is made of, or compare it with what the begun run wrote.

    Each process waits until it is written.

    Args:
        config: The settings, whose steps are known.
        files: The tokenizer's and the processor's files, of a run that has not begun.
        pin: reads the training data's digests; a file that a row names is not compared.

    Raises:
        DataError: a file of the training data cannot be read.
        RunError: the settings would make other updates than the run's; or the training data have
            changed, and `data.changed` does not accept that.
    """
    pins: Pins = {}

    def digest() -> bytes:
        pins.update(pin())
        return hashlib.sha256(json.dumps(pins, sort_keys=True).encode()).digest()

    first_on_machine(digest)
    begun = has_begun(directory)
    refused = _refused(config, directory, pins) if begun and is_first() else None
    if broadcast_bool(refused is not None):
        raise RunError(refused or "the run does not go on: the first process says why")
    if is_first():
        if not begun:
            shutil.rmtree(directory / PROCESSOR, ignore_errors=True)
            shutil.copytree(files, directory / PROCESSOR)
        if not begun or config.steps > _read(directory / CONFIG, ("steps",))["steps"]:
            _write(directory / CONFIG, to_tree(config))
        _write(directory / DATA, pins)
    wait_for_all("the run's start")


def _refused(config: RunConfig, directory: Path, pins: Pins) -> str | None:
    """The reason why a run does not go on with these settings and data, or None."""
    try:
        settings = _changed_settings(config, directory)
        # In a run by epochs, other rows make other steps: it is the data that have changed.
        if settings and not all(line.startswith("steps ") for line in settings):
            return _other_settings(directory, settings)
        return _changed_data(config.data, directory, pins) or (
            _other_settings(directory, settings) if settings else None
        )
    except RunError as error:
        return str(error)


def _changed_settings(config: RunConfig, directory: Path) -> list[str]:
    """A line for each setting whose change would make other updates than the run's.

    A finished run may have more steps than it had, whatever its schedule.
    """
    before = _read(directory / CONFIG, ("steps", "data", "optimizer"))
    old, new = _fixed(before), _fixed(to_tree(config))
    longer = config.steps is not None and config.steps > before["steps"]
    if longer and max(_steps(directory)) >= before["steps"]:
        old.pop("steps", None)
        new.pop("steps", None)
    later = " (more steps can be added once the run is finished)" if longer else ""
    return [
        f"{line}{later}" if line.startswith("steps ") else line for line in differences(old, new)
    ]


def _fixed(tree: dict[str, Any]) -> dict[str, Any]:
    """The settings that a resumed run must have in common with what it resumes.

    `steps` may change where no learning rate depends on it: with a constant schedule.
    """
    kept = {name: value for name, value in tree.items() if name not in _RESUMABLE}
    kept["data"] = {name: v for name, v in tree["data"].items() if name not in _RESUMABLE_DATA}
    if tree["optimizer"]["schedule"] == "constant":
        del kept["steps"]
    return kept


def _other_settings(directory: Path, lines: Sequence[str]) -> str:
    return (
        f"{directory} holds a run with another config: {'; '.join(lines)}. Undo these changes to "
        "go on with it, or name another directory to start a new run"
    )


def _changed_data(config: ReadingConfig, directory: Path, pins: Pins) -> str | None:
    """The reason why a run does not go on with data of these pins, or None."""
    if not (directory / DATA).is_file():
        say(f"{directory} does not say what its training data were; those of now are written down")
        return None
    changed = changes(_read(directory / DATA, ("files", "rows")), pins)
    if not changed:
        return None
    if config.changed == "accept":
        say(f"going on with training data that have changed: {'; '.join(changed)}")
        return None
    return (
        f"the training data of {directory} have changed since the run began: {'; '.join(changed)}. "
        "Restore them to go on, name another directory to start a new run, or set "
        "data.changed=accept to go on with the data as they are now"
    )


def _read(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Read what `_write` wrote, and check that it has these keys.

    Raises:
        RunError: it is not there, or something else is.
    """
    try:
        content = read_json(path, max_bytes=MAX_SETTINGS_BYTES)
    except FileNotFoundError:
        content = None
    if not isinstance(content, dict) or any(key not in content for key in keys):
        raise RunError(
            f"{path} is damaged or not there, and the run in {path.parent} cannot go on without "
            "what it says: restore it from a backup, or name another directory to start a new run"
        )
    return content


def _write(path: Path, content: Any) -> None:
    aside = path.with_suffix(".saving")
    aside.write_text(json.dumps(content, indent=1))
    aside.replace(path)


def _steps(directory: Path) -> list[int]:
    """The steps of the finished checkpoints."""
    found = (directory / "checkpoints").glob("step_*[0-9]")
    return [int(path.name.removeprefix("step_")) for path in found]


def init_or_restore(
    training: TrainSetup,
    first_parameters: Callable[[], Flat],
    directory: Path,
    checkpoints: Checkpoints,
) -> tuple[TrainState, dict[str, Any]]:
    """The state to go on from, on the run's mesh, and what its checkpoint says beside it.

    Raises:
        RunError: the frozen parameters are not there, or cannot be saved.
        RestoreError: the checkpoints are damaged, or of another state.
    """
    abstract = training.abstract_state()
    # Saved once: half of a LoRA's or a frozen tower's checkpoint would be the same every time.
    with Checkpoints(directory / "frozen", CheckpointConfig()) as kept:
        restored = checkpoints.restore(drop_frozen(abstract))
        if restored is not None:
            state, meta = restored
            frozen = restore_frozen(kept, abstract.frozen)
            if frozen is None:
                raise RunError(f"{directory / 'frozen'} lacks the frozen parameters of the run")
            if meta.get("best"):
                checkpoints.best = meta["best"]["step"]
            return training.placement.to_padded(dataclasses.replace(state, frozen=frozen)), meta
        if is_first():
            shutil.rmtree(kept.path(0), ignore_errors=True)
        params = first_parameters()
        # Placed as a restored one is: the compiled step is then the same program, and cached once.
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        state = jax.jit(training.first_state, out_shardings=shardings)(params)
        del params
        if state.frozen:
            kept.save(0, state.frozen, {})
        kept.wait()
        if kept.failure is not None:
            raise RunError(f"the frozen parameters could not be saved: {kept.failure}")
    return training.placement.to_padded(state), {}


def restore_frozen(kept: Checkpoints, abstract: Flat) -> Flat | None:
    """The frozen parameters that a run saved, or None; of a network without any nothing is saved.

    Raises:
        RestoreError: they are damaged, or of another network.
    """
    if not abstract:
        return {}
    restored = kept.restore(abstract)
    return None if restored is None else restored[0]


def pin(data: OpenedData) -> Pins:
    """{"rows": {source: rows}, "files": {file: sha256}} of the training data.

    Files of rows (`.jsonl`, `.json`, `.parquet`, `.array_record`) are hashed. For a Parquet file
    behind a URL only its footer is hashed, which has the size and the statistics of every column:
    reading all of a bucket would take longer than many runs. Image files that rows name are not
    hashed; images within rows are part of them.

    Raises:
        DataError: a file cannot be read.
    """
    files = {name: file for config in data.configs for name, file in config.files()}
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(_digest, files.values()))
    return {
        "rows": {name: len(source) for name, source, _ in data.train},
        "files": dict(zip(files, digests, strict=True)),
    }


def changes(before: Mapping[str, Mapping], now: Mapping[str, Mapping]) -> list[str]:
    """A phrase for each file that differs and each source that has another number of rows."""
    phrases = []
    old, new = before["files"], now["files"]
    for file in sorted(old.keys() | new.keys()):
        if file not in new:
            phrases.append(f"{file} is no longer part of them")
        elif file not in old:
            phrases.append(f"{file} is new")
        elif old[file] != new[file]:
            phrases.append(
                f"{file} has other content (sha256 {old[file][:12]} then, {new[file][:12]} now)"
            )
    old, new = before["rows"], now["rows"]
    for source in sorted(old.keys() | new.keys()):
        then, rows = old.get(source, 0), new.get(source, 0)
        if then != rows:
            phrases.append(f"{source} had {then:,} rows and has {rows:,}")
    if phrases and old == new:
        phrases.append(f"there are {sum(new.values()):,} rows, as many as before")
    return phrases


def _digest(file: Place) -> str:
    try:
        if file.suffix == ".parquet" and not isinstance(file, Path):
            return hashlib.sha256(_footer(file)).hexdigest()
        with local_copy(file).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}") from error


def _footer(file: Place) -> bytes:
    """A Parquet file's metadata: its length is in the 8 bytes before the end, and is before it."""
    with file.open("rb") as stream:
        stream.seek(-8, 2)
        length = int.from_bytes(stream.read(4), "little")
        stream.seek(-8 - length, 2)
        return stream.read(length)


class CheckpointPolicy:
    """The checkpoints with what a run wants to find beside them.

    Attributes:
        best: {"step", "metric", "value"} of the best evaluation whose checkpoint is saved or being
            saved, or None.
        evaluated: the step of the last evaluation.
    """

    def __init__(self, training: TrainSetup, checkpoints: Checkpoints, meta: Mapping[str, Any]):
        """
        Args:
            meta: of the checkpoint that the run goes on from; empty for a new run.
        """
        self._training, self._checkpoints = training, checkpoints
        self.best: dict[str, Any] | None = meta.get("best")
        self._best_before: dict[str, Any] | None = None
        self.last_eval_step: int = meta.get("evaluated", 0)

    def is_best(self, step: int, scores: Mapping[str, float]) -> bool:
        """Whether the evaluation of a step is the best so far; it is, then, from now on.

        Raises:
            RunError: the metric that decides is not among the scores.
        """
        metric = self._training.config.evaluation.metric
        if metric not in scores:
            raise RunError(
                f"evaluation.metric={metric!r} is not among what is measured: {', '.join(scores)}"
            )
        self._forget_a_best_that_failed(step)
        self.last_eval_step = step
        value, sign = scores[metric], -1.0 if metric in LOSSES else 1.0
        before = self.best
        # A value of another metric, from before the run went on with this one, says nothing.
        comparable = before is not None and before["metric"] == metric
        if math.isnan(value):
            return False
        if before is not None and comparable and not sign * value > sign * before["value"]:
            return False
        self._best_before = self.best
        self.best = {"step": step, "metric": metric, "value": value}
        return True

    def save(self, state: TrainState, step: int, *, best: bool = False) -> None:
        """Start saving; what fails is reported, and the next save tries again."""
        self._forget_a_best_that_failed(step)
        config = self._training.config
        meta = {
            "step": step,
            "rows": step * config.batch_size,
            "config": to_tree(config),
            "best": self.best,
            "evaluated": self.last_eval_step,
        }
        true_shaped = self._training.placement.to_true_shape(drop_frozen(state))
        self._checkpoints.save(step, true_shaped, meta, best=best)

    def wait(self) -> None:
        """Wait until the last save is on disk.

        Raises:
            RunError: it could not be saved.
        """
        self._checkpoints.wait()
        failure = self._checkpoints.failure
        if failure is not None:
            steps = self._checkpoints.steps()
            raise RunError(f"the last checkpoint could not be saved: {failure}; there are {steps}")

    def _forget_a_best_that_failed(self, step: int) -> None:
        """Return to the best before, where the best one could not be saved."""
        self._checkpoints.wait()
        if self.best is not None and self.best["step"] not in (step, self._checkpoints.best):
            self.best = self._best_before
