"""`florence-jax train`, also `python -m train.main`: train or fine-tune a Florence-2."""

import argparse
import dataclasses
import functools
import os
import tempfile
import textwrap
from pathlib import Path

from florence_jax.runtime.program import TRACEBACK, run_program
from florence_jax.training.config import TrainConfig
from florence_jax.training.config_loader import describe, load_settings

_EPILOG = """
examples:
  python -m train.main --config train/recipes/lora.py data.directory=my_data directory=runs/mine
  python -m train.main --config train/recipes/detection.py data.directory=my_coco --dry-run
  python -m train.main --config train/recipes/shapes.py steps=1000 batch_size=16
  python -m train.main --config train/recipes/full.py directory=runs/pod --mesh data=4,fsdp=8

The same command goes on where a run was interrupted, and with more steps where it was finished;
epochs=3 stands in place of a recipe's steps. Exit status: 0 done, 1 failed, 143 interrupted
and saved.

settings (given as key=value; values are written as in YAML):
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_program(
        "error",
        functools.partial(_run, arguments),
        failed=1,
        interrupted="interrupted; the same command goes on from the last checkpoint",
    )


def _run(arguments: list[str] | None) -> int:
    # Intermixed: --dry-run may stand before, between and behind the settings.
    options = _parser().parse_intermixed_args(arguments)
    if options.traceback:
        os.environ[TRACEBACK] = "1"
    words = [
        f"{name}={getattr(options, name)}" for name in ("mesh", "rules") if getattr(options, name)
    ]
    config = load_settings(TrainConfig, options.config, [*options.settings, *words])
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train.main",
        description="Train or fine-tune a Florence-2.",
        epilog=_EPILOG + _settings(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="in place of the recipe's")
    parser.add_argument("--config", type=Path, metavar="RECIPE", help="a .py or .yaml file")
    parser.add_argument(
        "--mesh",
        metavar="AXIS=SIZE,...",
        help="the setting `mesh`: devices along each axis. Several devices of one CPU are for "
        "trying meshes out: XLA:CPU aborts the process where one of them comes a minute later "
        "to a collective than another, as on busy cores. Free the cores, or wait longer: "
        "add xla_cpu_collective_call_terminate_timeout_seconds=600 to the environment's XLA_FLAGS. "
        "The same command goes on from the last checkpoint",
    )
    parser.add_argument("--rules", metavar="NAME|FILE", help="the setting `rules`")
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="this is one of several processes, which the environment describes "
        "(JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID, a TPU pod, SLURM)",
    )
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of several processes...")
    parser.add_argument("--processes", type=int, metavar="N", help="... how many...")
    parser.add_argument("--process", type=int, metavar="I", help="... and which this is, from 0")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show the settings, sizes and one batch with its pictures, and stop",
    )
    parser.add_argument(
        "--profile", type=int, default=0, metavar="N", help="trace N steps into RUN/profile"
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    return parser


def _settings() -> str:
    lines = []
    for name, default, kind, meaning in describe(TrainConfig):
        if dataclasses.is_dataclass(default):
            default = type(default).__name__
        lines.append(
            f"  {name} = {default!r}  ({kind})"
            if default != "(required)"
            else f"  {name}  ({kind}, required)"
        )
        lines.append(textwrap.fill(meaning, 92, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines).replace("%", "%%")
