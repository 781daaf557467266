"""`florence-jax train`, also `python -m train.main`: train or fine-tune a network."""

import functools
import inspect
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from florence_jax.runtime.program import TRACEBACK, run_program
from florence_jax.runtime.signals import exit_now
from florence_jax.training.config_loader import RunSettings, Switch, parse_program_flags
from florence_jax.training.data.column_sources import ColumnsConfig
from florence_jax.training.data.columns import Columns
from florence_jax.training.data.sources import KINDS, FileConfig, ObjectsConfig, SourceConfig
from florence_jax.training.data.storage import discard_copies

_DESCRIPTION = """\
Train or fine-tune a Florence-2, an image classifier or a segmentation network.

examples:
  florence-jax train --config train/recipes/lora.py --data.directory my_data --directory runs/mine
  florence-jax train --config train/recipes/detection.py --data.directory my_coco --dry-run
  florence-jax train --config train/recipes/shapes.py --steps 1000 --batch-size 16
  florence-jax train --config train/recipes/full.py --directory runs/pod --mesh data=4,fsdp=8
  florence-jax train --config train/recipes/classify.py --data.directory my_classes

resuming:
  The same command resumes a run that was interrupted, and goes on with one that was finished where
  it now has more steps; --epochs takes the place of a recipe's steps. The flags are those of the
  recipe's settings, and without a recipe those of a Florence-2's.

exit status:
  0 done, 1 failed, 2 a wrong flag, 143 interrupted and saved

sources of --data.train and --data.valid, which take a JSON list of objects:
"""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of the command beside the settings of the run.

    Attributes:
        run: The settings of the run.
        config: Recipe: a .py file that holds `config = TrainConfig(...)`, or the config.json of a
            run. Flags replace its values.
        dry_run: Show the settings, sizes and one batch with its images drawn, and stop.
        profile: Number of steps to trace into RUN/profile.
        distributed: This is one of several processes, which the environment describes
            (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID, a TPU pod, SLURM).
        coordinator: HOST:PORT of the first of several processes.
        processes: Number of processes.
        process: Index of this process, from 0.
        traceback: Show where an error came from.
    """

    run: RunSettings
    config: Path | None = None
    dry_run: Switch = False
    profile: int = 0
    distributed: Switch = False
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    traceback: Switch = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_program(
        "error",
        functools.partial(_run, sys.argv[1:] if arguments is None else arguments),
        failed=1,
        interrupted="interrupted; the same command goes on from the last checkpoint",
    )


def end_process(status: int) -> NoReturn:
    """End the process of a run: an interrupted compilation still runs on a thread."""
    discard_copies()
    exit_now(status)


def _run(arguments: Sequence[str]) -> int:
    # As under `python -m`: a recipe may import what lies in the current directory.
    sys.path.append(os.getcwd())
    options = parse_program_flags(
        TrainOptions,
        arguments,
        prog="florence-jax train",
        description=_DESCRIPTION + "\n".join(_source_fields()),
    )
    config = options.run
    if options.traceback:
        os.environ[TRACEBACK] = "1"
    if options.distributed or options.coordinator:
        from florence_jax.training.distributed import join

        join(options.coordinator, options.processes, options.process)
    # Here and not above: --help and a wrong setting need not wait for jax.
    from florence_jax.runtime.compilation_cache import use_compilation_cache
    from florence_jax.training.dry_run import dry_run
    from florence_jax.training.loop import train

    use_compilation_cache()
    if options.dry_run:
        directory = Path(tempfile.mkdtemp(prefix="florence-dry-run-"))
        for line in dry_run(config, directory):
            print(line)
        return 0
    return int(train(config, profile_steps=options.profile))


def _source_fields() -> Iterator[str]:
    """The fields of each layout of data, from the docstrings of its settings."""
    shared = {
        "every source": SourceConfig,
        "files": FileConfig,
        "voc, yolo, labelme, label_studio and cvat (besides the fields of coco)": ObjectsConfig,
        "huggingface and webdataset": ColumnsConfig,
        "columns of these": Columns,
    }
    for name, kind in (shared | KINDS).items():
        summary, *rest = inspect.cleandoc(kind.__doc__ or "").splitlines()
        lines = [f"  {name}", f"      {summary}"]
        for line in rest:
            if line.startswith("     "):
                lines[-1] += f" {line.strip()}"
            elif line.startswith("    "):
                field, _, meaning = line.strip().partition(": ")
                lines += [f"      {field}", f"          {meaning}"]
        yield from lines
