"""`python -m train.export RUN`: a run as a checkpoint that everything else reads.

What it writes is what `florence_jax.checkpoint.save_checkpoint` writes: `Florence2Pipeline` loads
it, `python -m convert.to_torch` gives it to PyTorch, and `model.start` of another run takes it. The
parameters are the moving average where the run keeps one, and adapters are added to their kernels;
they are also written by themselves, to RUN/adapter.safetensors or beside --out DIRECTORY to
DIRECTORY.adapter.safetensors, the file that `python -m convert.export_lora` takes.
"""

import argparse
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from florence_jax.checkpoint import save_checkpoint
from florence_jax.checkpoint.pytorch.safetensors_writer import save_tensors
from florence_jax.runtime.atomic_file import temporary_name
from florence_jax.runtime.directory_lock import directory_lock
from florence_jax.runtime.program import run_program
from florence_jax.runtime.text_file import MAX_SETTINGS_BYTES, read_json
from florence_jax.sharding import all_gather_to_hosts
from florence_jax.training.build import TrainSetup, build_training, drop_frozen, eval_params
from florence_jax.training.checkpointing.manager import CheckpointConfig, Checkpoints
from florence_jax.training.checkpointing.resume import CONFIG, PROCESSOR
from florence_jax.training.config import TrainConfig
from florence_jax.training.config_loader import from_tree
from florence_jax.training.distributed import is_first
from florence_jax.training.evaluation import merged, nested
from florence_jax.training.lora import is_factor
from florence_jax.training.pretrained import PretrainedFiles, read_start
from florence_jax.training.state import TrainState

_LOCK = ".export.lock"


def export_run(
    training: TrainSetup,
    start: PretrainedFiles,
    state: TrainState,
    directory: Path | None = None,
) -> list[Path]:
    """Write the checkpoint, and the adapters where there are some; an older export is replaced.

    Args:
        state: in its true shapes, wherever it lies.
        directory: of the checkpoint; by default RUN/export.

    Returns:
        What was written.
    """
    # Exports beside each other keep their adapters apart.
    prefix = f"{directory.name}." if directory else ""
    directory = directory or Path(training.config.directory) / "export"
    params = eval_params(state)
    mesh = training.placement.mesh
    if mesh.is_multi_process:
        params = all_gather_to_hosts(mesh, params)
        if not is_first():
            return []
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Of two exports to one place, the adapters and the checkpoint must be one's: the second waits,
    # since a run that ends must not lose its own.
    with directory_lock(directory.parent, _LOCK, wait=True):
        adapter = directory.parent / f"{prefix}adapter.safetensors"
        return _write(training, start, params, directory, adapter)


def _write(
    training: TrainSetup, start: PretrainedFiles, params: Any, directory: Path, adapter: Path
) -> list[Path]:
    config, written = training.config, []
    factors = {path: np.asarray(leaf) for path, leaf in params.items() if is_factor(path)}
    if factors:
        aside = temporary_name(adapter)
        try:
            save_tensors(
                factors,
                aside,
                metadata={
                    "format": "florence-jax-lora-1",
                    "alpha": json.dumps(config.lora.alpha),
                    "use_rslora": json.dumps(config.lora.rank_stabilised),
                },
            )
            aside.replace(adapter)
        finally:
            aside.unlink(missing_ok=True)
        written.append(adapter)
    base = {
        path: np.asarray(jax.device_get(leaf)).astype(jax.numpy.dtype(config.export.dtype))
        for path, leaf in merged(params, training, config.export.dtype).items()
    }
    save_checkpoint(directory, start.config, nested(base), files=start.files, overwrite=True)
    return [*written, directory]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_program("error", functools.partial(_run, arguments), failed=1)


def _run(arguments: list[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m train.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="the run's directory")
    parser.add_argument("--out", type=Path, help="default: RUN/export")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="a checkpoint's step; default: the newest one's")
    which.add_argument("--best", action="store_true", help="the best by evaluation.metric")
    options = parser.parse_args(arguments)
    tree = read_json(options.run / CONFIG, max_bytes=MAX_SETTINGS_BYTES)
    config = from_tree(TrainConfig, {**tree, "directory": str(options.run)})
    for path in _export(config, options.step, options.best, options.out):
        print(path)
    return 0


def _export(config: TrainConfig, step: int | None, best: bool, out: Path | None) -> list[Path]:
    directory = Path(config.directory)
    start = read_start(directory / PROCESSOR)
    # On the devices that are here, and not those that it was trained on.
    training = build_training(dataclasses.replace(config, mesh=""), start)
    abstract = training.abstract_state()
    settings = CheckpointConfig()
    with (
        Checkpoints(directory / "checkpoints", settings, writes=False) as checkpoints,
        Checkpoints(directory / "frozen", settings, writes=False) as kept,
    ):
        if best:
            newest = checkpoints.steps()[-1:]
            paths = [checkpoints.path(number) / "meta.json" for number in newest]
            metas = [read_json(path, max_bytes=MAX_SETTINGS_BYTES) for path in paths]
            if not metas or not metas[0]["best"]:
                raise ValueError(f"{directory} has no best checkpoint: it was never evaluated")
            step = metas[0]["best"]["step"]
        restored = checkpoints.restore(drop_frozen(abstract), step)
        frozen = kept.restore(abstract.frozen)
        if restored is None or frozen is None:
            raise ValueError(
                f"{directory} has no checkpoint{'' if step is None else f' of step {step}'}; there "
                f"are {checkpoints.steps()}"
            )
    state = dataclasses.replace(restored[0], frozen=frozen[0])
    return export_run(training, start, state, out)
