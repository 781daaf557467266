"""`florence-jax verify-output`: check the rows, ids and checksums that a run wrote."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_verify_output(commands: Any) -> None:
    """Add the command to the parser's."""
    verify = commands.add_parser(
        "verify-output",
        description="Check that DIR has every input's row, once, as it was written. The exit "
        "status is 0 if it has, and 1 if something is missing or wrong.",
    )
    verify.add_argument("directory", type=Path, metavar="DIR")
    verify.add_argument("--quiet", action="store_true", help="no progress bar")
    verify.set_defaults(run=_verify_output)


def _verify_output(arguments: argparse.Namespace) -> int:
    from florence_jax.batch.verify import verify_output

    progress = not arguments.quiet and sys.stderr.isatty()
    report = verify_output(arguments.directory, progress=progress)
    print(report.describe())
    return 0 if report.is_complete else 1
