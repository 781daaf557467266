"""The command line `florence-jax`: its parser, and the dispatch to one file for each command."""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from florence_jax.cli.help import COMMANDS, DESCRIPTION, VersionAction, commands_text
from florence_jax.runtime.program import run_program
from florence_jax.runtime.program_parser import ProgramParser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 if an image failed, or 2 for a wrong call."""
    return run_program("florence-jax", functools.partial(_run, arguments))


def _run(arguments: Sequence[str] | None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    chosen = next((word for word in words if not word.startswith("-")), None)
    parser = command_parser(() if chosen is None else (chosen,))
    parsed = parser.parse_args(words)
    if parsed.run is None:
        parser.print_help()
        return 0
    parsed.own_process = arguments is None
    return parsed.run(parsed)


def command_parser(complete: Iterable[str] = tuple(COMMANDS)) -> ProgramParser:
    """The parser of the command line.

    Args:
        complete: the commands whose options it knows, and whose modules are imported for that; of
            the others it knows the names.
    """
    parser = ProgramParser(
        prog="florence-jax",
        usage="florence-jax COMMAND [OPTION ...]",
        description=f"{DESCRIPTION}\n\n{commands_text()}",
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
    commands = parser.add_subparsers(
        action=_Commands, metavar="COMMAND", prog="florence-jax", help=argparse.SUPPRESS
    )
    for name, command in COMMANDS.items():
        if name in complete:
            module, _, function = command.adder.partition(":")
            getattr(importlib.import_module(f"florence_jax.cli.{module}"), function)(commands)
        else:
            commands.add_parser(name)
    return parser


class _Commands(argparse._SubParsersAction):
    """Gives each command its summary, and its example where its help has no other."""

    def add_parser(
        self, name: str, *, epilog: str | None = None, **settings: Any
    ) -> argparse.ArgumentParser:
        command = COMMANDS[name]
        epilog = epilog or f"example:\n  {command.example}"
        return super().add_parser(name, help=command.summary, epilog=epilog, **settings)


if __name__ == "__main__":
    sys.exit(main())
