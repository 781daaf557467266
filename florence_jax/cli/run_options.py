"""Options of runs in blocks, which `predict`, `annotate` and `evaluate` share."""

from __future__ import annotations

import argparse
from typing import Any

from florence_jax.batch.run_options import RowFormat, RunOptions, find_share


def add_block_options(parser: Any) -> None:
    """Add --block-size, to a parser or group."""
    parser.add_argument(
        "--block-size",
        type=int,
        metavar="N",
        help="images in a block (default: 512, 32 on a CPU, and at least four batches)",
    )


def add_worker_option(parser: Any) -> None:
    """Add --workers, to a parser or group."""
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that read images, 0 for none (default: one for each core but one, at most "
        "16)",
    )


def add_process_options(parser: Any) -> None:
    """Add --process-index and --process-count, to a parser or group."""
    parser.add_argument(
        "--process-index",
        type=int,
        metavar="I",
        help="this is process I, from 0, of several that share DIR (default: what jax.distributed, "
        "SLURM, Open MPI or Cloud TPU says)",
    )
    parser.add_argument("--process-count", type=int, metavar="N", help="how many there are")


def add_extend_option(parser: Any) -> None:
    """Add --extend, to a parser or group."""
    parser.add_argument(
        "--extend",
        action="store_true",
        help="the inputs have grown since the run in DIR began: do the new ones too, in blocks "
        "behind the others",
    )


def run_options(
    arguments: argparse.Namespace,
    *,
    row_format: RowFormat | None = None,
    max_block_size: int | None = None,
) -> RunOptions:
    """How the run that the arguments describe is divided.

    Raises:
        ValueError: numbers that are out of range or do not go together.
    """
    return RunOptions(
        block_size=getattr(arguments, "block_size", None),
        batch_size=arguments.batch_size,
        max_block_size=max_block_size,
        row_format=row_format,
        workers=arguments.workers,
        share=find_share(arguments.process_index, arguments.process_count),
        extend=getattr(arguments, "extend", False),
    )
