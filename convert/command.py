"""What every program here does alike: take options, report an error in one line, check paths."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from florence_jax.checkpoint.files import MAX_METADATA_BYTES, contained_bytes, has_file
from florence_jax.checkpoint.hub import METADATA_FILES
from florence_jax.checkpoint.pytorch.processor_config import completed_processor
from florence_jax.runtime.program import run_program


def guarded(program: str, action: Callable[[], int]) -> int:
    """Run `action`; the exit status is its own, 130 when interrupted, or 2 for a wrong call."""
    return run_program(
        program, action, interrupted=f"{program}: interrupted; nothing is left half-written"
    )


def check_apart(source: Path, destination: Path) -> None:
    """Refuse a destination that is the source, holds it or lies in it.

    Raises:
        ValueError: it does.
    """
    a, b = source.resolve(), destination.resolve()
    if a.is_relative_to(b) or b.is_relative_to(a):
        raise ValueError(
            f"the destination {destination} and the source {source} overlap: writing one would "
            "destroy the other; name a directory outside it"
        )


def as_size(count: int) -> str:
    """1552613376 -> "1.55 GB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count} bytes"


def program_parser(program: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """A parser without arguments; `epilog` is shown as it is."""
    return argparse.ArgumentParser(
        prog=f"python -m {program}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_dtype(parser: argparse.ArgumentParser, meaning: str) -> None:
    """--dtype, one that parameters may have."""
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help=meaning)


def add_revision(parser: argparse.ArgumentParser, owner: str = "") -> None:
    """--revision of a hub id."""
    parser.add_argument("--revision", help=f"branch, tag or commit of a hub id{owner}")


def add_writing_options(parser: argparse.ArgumentParser) -> None:
    """--overwrite and --quiet."""
    parser.add_argument(
        "--overwrite", action="store_true", help="replace DEST, if it is a checkpoint"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no summary")


def copy_metadata(source: Path, destination: Path) -> None:
    """Copy the configs, tokenizer and processor files of a checkpoint, as far as it has them.

    A processor_config.json gets the `post_processor_config` that transformers needs.
    """
    for name in METADATA_FILES:
        if has_file(source, name):
            content = contained_bytes(source, name, MAX_METADATA_BYTES)
            (destination / name).write_bytes(completed_processor(name, content))
