"""Export a run as a checkpoint; the program is `python -m train.export RUN`.

`Florence2Pipeline` loads the checkpoint, `python -m convert.to_torch` converts it for PyTorch, and
`--model.start` of another run starts from it. A classifier is written for `load_backbone` and timm,
a segmentation network for `load_segmenter`. The parameters are the moving average where the run
keeps one, and adapters are added to their kernels. A run with LoRA also writes its adapter alone,
in PEFT's format and the naming of the model that it started from: to RUN/adapter, or beside --out
DIRECTORY to DIRECTORY.adapter.
"""

import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from florence_jax.adapters import write_adapter
from florence_jax.checkpoint import read_config, save_checkpoint
from florence_jax.checkpoint.hub import BUNDLED
from florence_jax.checkpoint.json_files import dialect
from florence_jax.checkpoint.param_tree import unflatten
from florence_jax.checkpoint.pytorch.key_map import Naming
from florence_jax.runtime.directory_lock import directory_lock
from florence_jax.runtime.program import run_program
from florence_jax.runtime.program_parser import ProgramParser
from florence_jax.runtime.text_file import MAX_SETTINGS_BYTES, read_json
from florence_jax.sharding import all_gather_to_hosts
from florence_jax.training.checkpointing.manager import Checkpoints
from florence_jax.training.checkpointing.resume import CONFIG, PROCESSOR, restore_frozen
from florence_jax.training.config import TrainConfig
from florence_jax.training.config_loader import read_run_config
from florence_jax.training.distributed import is_first
from florence_jax.training.lora import as_adapter, is_factor
from florence_jax.training.metrics.evaluation import merged
from florence_jax.training.prepare import TrainSetup, build_training
from florence_jax.training.pretrained import PretrainedFiles, read_pretrained, write_eos_bias
from florence_jax.training.run_config import RunConfig
from florence_jax.training.settings import CheckpointConfig
from florence_jax.training.state import TrainState, drop_frozen, eval_params

_LOCK = ".export.lock"
_MODEL_CONFIG = "config.json"


def export_run(
    setup: TrainSetup,
    pretrained: PretrainedFiles,
    state: TrainState,
    directory: Path | None = None,
) -> list[Path]:
    """Write the checkpoint, and the adapters where there are some; an older export is replaced.

    Args:
        state: the state in its true shapes, on any devices.
        directory: the checkpoint's; by default RUN/export.

    Returns:
        The paths written.
    """
    # Exports beside each other keep their adapters apart.
    prefix = f"{directory.name}." if directory else ""
    directory = directory or Path(setup.config.directory) / "export"
    params = eval_params(state)
    mesh = setup.placement.mesh
    if mesh.is_multi_process:
        params = all_gather_to_hosts(mesh, params)
        if not is_first():
            return []
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Adapters and checkpoint must come from one export: a second one to the same place waits, since
    # a run that ends must not lose its own.
    with directory_lock(directory.parent, _LOCK, wait=True):
        adapter = directory.parent / f"{prefix}adapter"
        return _write(setup, pretrained, params, directory, adapter)


def _write(
    setup: TrainSetup, pretrained: PretrainedFiles, params: Any, directory: Path, adapter: Path
) -> list[Path]:
    config, written = setup.config, []
    factors = {path: np.asarray(leaf) for path, leaf in params.items() if is_factor(path)}
    if factors:
        write_adapter(
            adapter,
            as_adapter(factors, config.lora),
            _naming(pretrained.files, factors),
            base_model=_base_model(config.model.start),
            revision=config.model.revision,
            overwrite=True,
        )
        written.append(adapter)
    base = {
        path: np.asarray(jax.device_get(leaf)).astype(jax.numpy.dtype(config.export.dtype))
        for path, leaf in merged(params, setup, config.export.dtype).items()
    }
    with tempfile.TemporaryDirectory(prefix="florence-export-") as temporary:
        # A resumed run may have another bias than the one that began.
        files = Path(shutil.copytree(pretrained.files, Path(temporary) / PROCESSOR))
        write_eos_bias(config.evaluation, pretrained.config.text.eos_token_id, files)
        save_checkpoint(directory, pretrained.config, unflatten(base), files=files, overwrite=True)
    return [*written, directory]


def _naming(files: Path, factors: Iterable[str]) -> Naming:
    """The naming of the model that the run started from, where that has a module for each factor.

    The projector's kernel is a bare parameter in the original, which PEFT cannot adapt.
    """
    has_config = (files / _MODEL_CONFIG).is_file()
    if not has_config or any(path.startswith("projector/") for path in factors):
        return "native"
    return dialect(read_config(files).config)


def _base_model(start: str) -> str | None:
    """The model that a run started from, as its adapter names it from any working directory."""
    path = Path(start).expanduser()
    is_path = bool(start) and start not in BUNDLED and path.is_dir()
    return str(path.resolve()) if is_path else start or None


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_program("error", functools.partial(_run, arguments), failed=1)


def _run(arguments: list[str] | None) -> int:
    parser = ProgramParser(
        prog="python -m train.export",
        description=__doc__,
    )
    parser.add_argument("run", type=Path, help="the run's directory")
    parser.add_argument("--out", type=Path, help="default: RUN/export")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="a checkpoint's step; default: the newest one's")
    which.add_argument("--best", action="store_true", help="the best by evaluation.metric")
    options = parser.parse_args(arguments)
    tree = read_json(options.run / CONFIG, max_bytes=MAX_SETTINGS_BYTES)
    config = read_run_config({**tree, "directory": str(options.run)})
    for path in _export(config, options.step, options.best, options.out):
        print(path)
    return 0


def _export(config: RunConfig, step: int | None, best: bool, out: Path | None) -> list[Path]:
    directory = Path(config.directory)
    setup, write = _trained(config, directory / PROCESSOR)
    abstract = setup.abstract_state()
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
        frozen = restore_frozen(kept, abstract.frozen)
        if restored is None or frozen is None:
            raise ValueError(
                f"{directory} has no checkpoint{'' if step is None else f' of step {step}'}; there "
                f"are {checkpoints.steps()}"
            )
    state = dataclasses.replace(restored[0], frozen=frozen)
    return write(state, out)


def _trained(
    config: RunConfig, files: Path
) -> tuple[TrainSetup, Callable[[TrainState, Path | None], list[Path]]]:
    """A run's step, and what writes its state.

    On the devices of this machine, not those that it was trained on.
    """
    if isinstance(config, TrainConfig):
        pretrained = read_pretrained(files)
        setup = build_training(dataclasses.replace(config, mesh=""), pretrained)
        return setup, functools.partial(export_run, setup, pretrained)
    from florence_jax.training.images.run import export_network, restored_setup

    setup, network = restored_setup(config, files)
    return setup, functools.partial(export_network, setup, network)
