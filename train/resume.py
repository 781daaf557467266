"""Where a run begins: at the start, or where its directory says that it was."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax

from florence_jax.runtime.text_file import MAX_SETTINGS_BYTES, read_json
from train.checkpoints import CheckpointConfig, Checkpoints
from train.config import TrainConfig, fixed
from train.processes import is_first, wait_for_all
from train.settings import differences, to_tree
from train.start import Start, load_parameters, prepare_start, read_start
from train.state import TrainState
from train.training import Training, without_frozen

CONFIG = "config.json"
PROCESSOR = "processor"


class RunError(RuntimeError):
    """A run that cannot start, go on, or end well; the message says what to do."""


def start_of(config: TrainConfig, directory: Path) -> Start:
    """The run directory's own start where it holds a checkpoint; it refuses another config."""
    if not any((directory / "checkpoints").glob("step_*[0-9]")):
        if is_first():
            prepare_start(config, directory / PROCESSOR)
            (directory / CONFIG).write_text(json.dumps(to_tree(config), indent=1))
        wait_for_all("the run's start")
        return read_start(directory / PROCESSOR)
    before = read_json(directory / CONFIG, max_bytes=MAX_SETTINGS_BYTES)
    changed = differences(fixed(before), fixed(to_tree(config)))
    if changed:
        raise RunError(
            f"{directory} holds a run with another config: {'; '.join(changed)}. Undo these "
            "changes to go on with it, or name another directory to start a new run"
        )
    return read_start(directory / PROCESSOR)


def first_or_restored(
    training: Training, start: Start, directory: Path, checkpoints: Checkpoints
) -> tuple[TrainState, dict[str, Any]]:
    """The state to go on from, on the run's mesh, and what its checkpoint says beside it.

    Raises:
        RunError: the frozen parameters are not there, or cannot be saved.
        RestoreError: the checkpoints are damaged, or of another state.
    """
    abstract = training.abstract_state()
    # Saved once: half of a LoRA's or a frozen tower's checkpoint would be the same every time.
    with Checkpoints(directory / "frozen", CheckpointConfig()) as kept:
        restored = checkpoints.restore(without_frozen(abstract))
        if restored is not None:
            state, meta = restored
            frozen = kept.restore(abstract.frozen)
            if frozen is None:
                raise RunError(f"{directory / 'frozen'} lacks the frozen parameters of the run")
            if meta.get("best"):
                checkpoints.best = meta["best"]["step"]
            return training.placement.place(dataclasses.replace(state, frozen=frozen[0])), meta
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
    return training.placement.place(state), {}
