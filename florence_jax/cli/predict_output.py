"""Where `predict` writes without --output-dir: lines, one COCO file, or sidecars."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from florence_jax.results.formats import SIDECARS, OutputOptions
from florence_jax.runtime.atomic_file import atomic_write, named_errors
from florence_jax.runtime.jsonl import LineWriter
from florence_jax.runtime.standard_streams import standard_output

if TYPE_CHECKING:
    from florence_jax.inference.predict import Page
    from florence_jax.results.row_writer import RowWriter


@contextlib.contextmanager
def open_output(
    options: OutputOptions, paths: Sequence[Path | Page]
) -> Iterator[tuple[RowWriter, Sequence[Path | Page]]]:
    """Open the output of a command; what is in the way is reported now.

    Args:
        options: the format and its files.
        paths: the images.

    Yields:
        The writer of rows, and the images that are still to be asked about.

    Raises:
        ValueError, OSError: the files cannot be written.
    """
    from florence_jax.inference.predict import Page
    from florence_jax.results.places import common_folder, relative_name
    from florence_jax.results.row_writer import line_writer

    files = [one.path if isinstance(one, Page) else one for one in paths]
    inputs = {os.path.realpath(one) for one in (*files, *options.inputs)}
    if options.file != "-" and os.path.realpath(options.file) in inputs:
        raise ValueError(f"--output {options.file} is one of the inputs: name another file")
    if options.kind in SIDECARS:
        with _sidecars(options, files) as opened:
            yield opened
    elif options.kind == "coco":
        root = common_folder(options.inputs, files)
        with _coco(options, functools.partial(relative_name, root=root)) as writer:
            yield writer, paths
    else:
        with _lines(options) as add_line:
            yield line_writer(options.kind, add_line), paths


def _lines(options: OutputOptions) -> AbstractContextManager[Callable[[str], None]]:
    """A function that adds a line; nothing is changed before the first one."""
    if options.file != "-":
        return _file_lines(options)
    output = standard_output()

    def write(line: str) -> None:
        with named_errors("standard output"):
            print(line, file=output, flush=True)

    return contextlib.nullcontext(write)


@contextlib.contextmanager
def _file_lines(options: OutputOptions) -> Iterator[Callable[[str], None]]:
    with LineWriter(options.file, overwrite=options.overwrite) as file:
        yield file.write


@contextlib.contextmanager
def _coco(options: OutputOptions, file_name: Callable[[str], str]) -> Iterator[RowWriter]:
    from florence_jax.results.coco import CocoFile

    path = Path(options.file)
    if options.file == "-":
        writer = CocoFile(standard_output().write, file_name)
    elif path.exists() and not path.is_file() and not path.is_dir():  # a pipe or a device
        writer = CocoFile(path.write_text, file_name)
    elif path.exists() and not options.overwrite:
        raise FileExistsError(
            f"{path} exists already: pass --overwrite to replace it, or another --output"
        )
    elif not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} does not exist: make the folder of --output first")
    else:
        writer = CocoFile(functools.partial(atomic_write, path), file_name)
    try:
        yield writer
    except KeyboardInterrupt:
        print("\nno COCO file is written before its last image", file=sys.stderr)
        raise
    writer.save()


@contextlib.contextmanager
def _sidecars(
    options: OutputOptions, paths: Sequence[Path]
) -> Iterator[tuple[RowWriter, Sequence[Path]]]:
    from florence_jax.results.places import SidecarPlaces, common_folder
    from florence_jax.results.row_writer import skipped_text
    from florence_jax.results.sidecars import check_sidecars, open_sidecars

    kind, overwrite = options.kind, options.overwrite
    names = list(dict.fromkeys(map(str, paths)))
    root = common_folder(options.inputs, names)
    places = SidecarPlaces(root, options.sidecar_dir, SIDECARS[kind])
    there = check_sidecars(kind, places, names, options.inputs, overwrite=overwrite)
    if there and not options.quiet:
        print(skipped_text(len(there), len(names), kind), file=sys.stderr)
    todo = [Path(name) for name in names if name not in there]
    with open_sidecars(kind, places, overwrite=overwrite) as writer:
        yield writer, todo
