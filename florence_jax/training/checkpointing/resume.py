"""Where a run begins: at the start, or where its directory says that it was."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from florence_jax.runtime.text_file import MAX_SETTINGS_BYTES, read_json
from florence_jax.training.build import TrainSetup, drop_frozen
from florence_jax.training.checkpointing.manager import CheckpointConfig, Checkpoints
from florence_jax.training.config import TrainConfig, fixed
from florence_jax.training.config_loader import differences, to_tree
from florence_jax.training.data.pins import changes, pin
from florence_jax.training.data.registry import Named, training_configs
from florence_jax.training.distributed import broadcast_bool, is_first, of_first_here, wait_for_all
from florence_jax.training.metrics.logger import say
from florence_jax.training.pretrained import PretrainedFiles, load_parameters
from florence_jax.training.state import TrainState

CONFIG = "config.json"
DATA = "data.json"
PROCESSOR = "processor"


class RunError(RuntimeError):
    """A run that cannot start, go on, or end well; the message says what to do."""


def has_begun(directory: Path) -> bool:
    """Whether a run's directory holds a checkpoint to go on from."""
    return bool(_steps(directory))


def check_same(config: TrainConfig, directory: Path) -> None:
    """Compare the settings, whose steps are known, with those of a run that has begun.

    A finished run may have more steps than it had, whatever its schedule.

    Raises:
        RunError: they would make other updates than the run's.
    """
    before = _read(directory / CONFIG, ("steps", "data", "optimizer"))
    old, new = fixed(before), fixed(to_tree(config))
    longer = config.steps is not None and config.steps > before["steps"]
    finished = max(_steps(directory)) >= before["steps"]
    if longer and finished:
        old.pop("steps", None)
        new.pop("steps", None)
    changed = differences(old, new)
    if not changed:
        return
    later = ""
    if longer and "steps" in old:
        later = " (more steps can be added once the run is finished)"
    raise RunError(
        f"{directory} holds a run with another config: {'; '.join(changed)}{later}. Undo these "
        "changes to go on with it, or name another directory to start a new run"
    )


def check_data(
    config: TrainConfig, directory: Path, sources: Sequence[Named]
) -> dict[str, dict[str, Any]]:
    """The pins of the training data as they are now.

    Raises:
        RunError: the run has begun with others, and `data.changed` does not accept that.
    """
    pins: dict[str, dict[str, Any]] = {}

    def digest() -> bytes:
        pins.update(pin(training_configs(config.data), sources))
        return hashlib.sha256(json.dumps(pins, sort_keys=True).encode()).digest()

    of_first_here(digest)
    refused = None
    if is_first() and has_begun(directory):
        refused = _refused(config, directory, pins)
    if broadcast_bool(refused is not None):
        raise RunError(refused or "the training data have changed: the first process says how")
    return pins


def begin(config: TrainConfig, directory: Path, files: Path, pins: Mapping[str, Any]) -> None:
    """Write down what a run is made of; each process waits until it is there.

    Args:
        files: the tokenizer's and the processor's, of a run that has not begun.
        pins: as from `check_data`.
    """
    if is_first():
        if not has_begun(directory):
            shutil.rmtree(directory / PROCESSOR, ignore_errors=True)
            shutil.copytree(files, directory / PROCESSOR)
            _write(directory / CONFIG, to_tree(config))
        elif config.steps > _read(directory / CONFIG, ("steps",))["steps"]:
            _write(directory / CONFIG, to_tree(config))
        _write(directory / DATA, pins)
    wait_for_all("the run's start")


def _refused(config: TrainConfig, directory: Path, pins: Mapping[str, Any]) -> str | None:
    """Why a run that has begun does not go on with data of these pins, or None."""
    if not (directory / DATA).is_file():
        say(f"{directory} does not say what its training data were; those of now are written down")
        return None
    changed = changes(_read(directory / DATA, ("files", "rows")), pins)
    if not changed:
        return None
    if config.data.changed == "accept":
        say(f"going on with training data that have changed: {'; '.join(changed)}")
        return None
    return (
        f"the training data of {directory} have changed since the run began: {'; '.join(changed)}. "
        "Restore them to go on, name another directory to start a new run, or set "
        "data.changed=accept to go on with the data as they are now"
    )


def _read(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """What `_write` wrote, with these keys.

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
    """Of the finished checkpoints."""
    found = (directory / "checkpoints").glob("step_*[0-9]")
    return [int(path.name.removeprefix("step_")) for path in found]


def init_or_restore(
    training: TrainSetup, start: PretrainedFiles, directory: Path, checkpoints: Checkpoints
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
            frozen = kept.restore(abstract.frozen)
            if frozen is None:
                raise RunError(f"{directory / 'frozen'} lacks the frozen parameters of the run")
            if meta.get("best"):
                checkpoints.best = meta["best"]["step"]
            return training.placement.to_padded(dataclasses.replace(state, frozen=frozen[0])), meta
        if is_first():
            shutil.rmtree(kept.path(0), ignore_errors=True)
        params = load_parameters(training.config, start, training.placement.layout)
        # Placed as a restored one is: the compiled step is then the same program, and cached once.
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        state = jax.jit(training.first_state, out_shardings=shardings)(params)
        del params
        kept.save(0, state.frozen, {})
        kept.wait()
        if kept.failure is not None:
            raise RunError(f"the frozen parameters could not be saved: {kept.failure}")
    return training.placement.to_padded(state), {}
