"""The command line `florence-jax`: its parser, and the dispatch to one file for each command."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence

from florence_jax.cli.annotate import add_annotate
from florence_jax.cli.bench import add_bench
from florence_jax.cli.convert import add_convert
from florence_jax.cli.demo import add_demo
from florence_jax.cli.doctor import add_doctor
from florence_jax.cli.evaluate import add_evaluate
from florence_jax.cli.export import add_export
from florence_jax.cli.help import DESCRIPTION, EPILOG, CommandParser, VersionAction
from florence_jax.cli.predict import add_predict
from florence_jax.cli.train_command import add_train
from florence_jax.cli.verify_output import add_verify_output
from florence_jax.runtime.program import run_program


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 if an image failed, or 2 for a wrong call."""
    return run_program("florence-jax", functools.partial(_run, arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    parsed = parser.parse_args(arguments)
    if parsed.run is None:
        parser.print_help()
        return 0
    parsed.own_process = arguments is None
    return parsed.run(parsed)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="florence-jax",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-V",
        "--version",
        action=VersionAction,
        nargs=0,
        default=argparse.SUPPRESS,
        help="print the versions of the library and what it runs on, and exit",
    )
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for add in (
        add_predict,
        add_verify_output,
        add_demo,
        add_export,
        add_convert,
        add_evaluate,
        add_annotate,
        add_bench,
        add_train,
        add_doctor,
    ):
        add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
