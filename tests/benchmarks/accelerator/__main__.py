"""`python -m tests.benchmarks.accelerator`: the options, and one unit after the other.

    python -m tests.benchmarks.accelerator --device cuda --out table --time-limit 580
    python -m tests.benchmarks.accelerator --device cuda --out table --time-limit 580 --resume
    python -m tests.benchmarks.accelerator --out look --quick

writes table/accelerator.json and table/accelerator.md after every row. Each unit of a stage is a
process of its own: one that hangs, crashes or runs out of memory loses its own rows only.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import jax

from florence_jax.runtime.program import run_program
from tests.benchmarks.accelerator import plan
from tests.benchmarks.accelerator.plan import QUICK, STAGES, Context, Sizes, Unit
from tests.benchmarks.accelerator.report import Report, Row

# Below this no unit is started.
_LEAST_SECONDS = 15.0
# Of what a failed unit wrote to stderr, for the table's JSON.
_LINES_OF_LOG = 40


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; the exit status is 1 if a unit failed or a check did not pass, 2 for an error."""
    options = _parser().parse_args(arguments)
    if options.unit:
        return _serve(options)
    return run_program("tests.benchmarks.accelerator", lambda: _run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the two tables")
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=STAGES,
        default=STAGES,
        help="default: all, in this order; environment is always measured",
    )
    parser.add_argument(
        "--units",
        default="",
        help="only units whose name holds this text, such as 'large'; --resume runs these again",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run whose tables are in OUT: units that ended there are not run again",
    )
    parser.add_argument(
        "--time-limit", type=float, default=float("inf"), help="seconds for the whole run"
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda", "tpu"),
        help="default: what jax chooses here; a device that is named and absent ends the run",
    )
    parser.add_argument(
        "--cache", type=Path, help="directory of weights and traces (default: OUT/work)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model, everything in this process, on the CPU"
    )
    parser.add_argument("--unit", help=argparse.SUPPRESS)
    parser.add_argument("--values", type=json.loads, default={}, help=argparse.SUPPRESS)
    return parser


def _run(options: argparse.Namespace) -> int:
    deadline = time.monotonic() + options.time_limit
    sizes = QUICK if options.quick else Sizes()
    platform = "cpu" if options.quick else options.device or _default_platform()
    about = {
        "command": shlex.join(["python", "-m", "tests.benchmarks.accelerator", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "platform": platform,
    }
    if options.quick:
        jax.config.update("jax_platforms", "cpu")
    report = Report(options.out, about, resume=options.resume)
    # What others are held against is measured first.
    for stage in dict.fromkeys(("environment", *options.stages)):
        for unit in plan.units(stage, sizes):
            named = options.units and stage != "environment"
            if named and options.units not in unit.name:
                continue
            if unit.key in report.finished and not named:
                continue
            report.begin(unit.key)
            left = deadline - time.monotonic()
            if left < _LEAST_SECONDS:
                report.add(_missing(unit, "not reached within --time-limit"), unit.key)
                continue
            context = _context(options, sizes, platform, report.rows)
            if options.quick:
                done = _run_here(unit, context, report)
            else:
                done = _run_apart(unit, context, report, left)
            if unit.key == "environment/machine" and report.rows[-1].failed:
                raise RuntimeError(f"{platform} cannot be used: {report.rows[-1].note}")
            if done:
                report.finish(unit.key)
    return 1 if any(row.failed or row.met is False for row in report.rows) else 0


def _run_here(unit: Unit, context: Context, report: Report) -> bool:
    try:
        for row in unit.run(context):
            report.add(row, unit.key)
    except Exception as error:
        traceback.print_exc()
        report.add(_missing(unit, f"{type(error).__name__}: {error}"), unit.key)
    return True


def _run_apart(unit: Unit, context: Context, report: Report, left: float) -> bool:
    """Run a unit in a process of its own; its rows come as they are made.

    It is ended after its own seconds, or after the `left` ones of the run.

    Returns:
        Whether it is done, with success or without; not where the run had no time for it.
    """
    seconds = min(left, unit.seconds)
    folder = Path(context.folder)
    variables = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"} | os.environ
    # Weights and engines of several processes share the device, and what they compile.
    variables |= {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_COMPILATION_CACHE_DIR": str((folder / "xla").absolute()),
    }
    log = folder / "logs" / f"{unit.key.replace('/', '-').replace(' ', '-')}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w+", encoding="utf-8", errors="replace") as errors:
        running = subprocess.Popen(
            unit_command(unit, context),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=variables,
            start_new_session=True,
        )
        late = threading.Event()

        def end() -> None:
            late.set()
            os.killpg(running.pid, signal.SIGKILL)

        timer = threading.Timer(seconds, end)
        with running as process:
            timer.start()
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.endswith("\n"):  # whole, and not cut by the process's end
                        report.add(Row(**json.loads(line)), unit.key)
                code = process.wait()
            finally:
                timer.cancel()
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        if late.is_set() or code:
            errors.seek(0)
            said = [line for line in errors.read().splitlines() if line.strip()]
            last = said[-1] if said and not late.is_set() else ""
            why = f"ended after {seconds:.0f} s" if late.is_set() else f"exit status {code}: {last}"
            report.add(_missing(unit, why, log=said[-_LINES_OF_LOG:]), unit.key)
            sys.stderr.write("\n".join(said[-_LINES_OF_LOG:]) + "\n")
    return not late.is_set() or left > unit.seconds


def unit_command(unit: Unit, context: Context) -> list[str]:
    """The command line of a unit's process."""
    command = [sys.executable, "-m", "tests.benchmarks.accelerator", "--out", "unused"]
    command += ["--unit", unit.key, "--device", context.platform]
    command += ["--cache", context.folder, "--values", json.dumps(context.values)]
    return command


def _serve(options: argparse.Namespace) -> int:
    """A unit's process: its rows as JSON lines, and nothing else, on standard output."""
    rows = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a compiler prints is no row
    # An absent device is an error, where jax would compute on the CPU instead.
    jax.config.update("jax_platforms", ",".join(dict.fromkeys((options.device, "cpu"))))
    stage, _ = options.unit.split("/", 1)
    sizes = Sizes()
    (unit,) = (unit for unit in plan.units(stage, sizes) if unit.key == options.unit)
    context = Context(
        sizes=sizes,
        platform=options.device,
        folder=str(options.cache),
        values=options.values,
    )
    for row in unit.run(context):
        print(json.dumps(dataclasses.asdict(row)), file=rows, flush=True)
    return 0


def _context(
    options: argparse.Namespace, sizes: Sizes, platform: str, rows: Sequence[Row]
) -> Context:
    folder = options.cache or options.out / "work"
    folder.mkdir(parents=True, exist_ok=True)
    return Context(
        sizes=sizes,
        platform=platform,
        folder=str(folder),
        values={row.what: row.value for row in rows if isinstance(row.value, float)},
        quick=options.quick,
    )


def _missing(unit: Unit, why: str, **details: object) -> Row:
    return Row(stage=unit.stage, what=unit.name, note=why, details=details)


def _default_platform() -> str:
    from tests.benchmarks.rivals.__main__ import _default_device

    return _default_device()


if __name__ == "__main__":
    sys.exit(main())
