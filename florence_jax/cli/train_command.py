"""`florence-jax train` in the command's parser; `cli/train.py` reads the flags and trains."""

from __future__ import annotations

import argparse
from typing import Any


def add_train(commands: Any) -> None:
    """Add the command to the parser's."""
    train = commands.add_parser(
        "train",
        add_help=False,
        prefix_chars="\0",  # tyro reads the flags, which are the fields of the settings
    )
    train.add_argument("flags", nargs="*")
    train.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> int:
    # Importing it needs the packages of the extra.
    from florence_jax.cli.train import end_process, main

    status = main(arguments.flags)
    return end_process(status) if arguments.own_process else status
