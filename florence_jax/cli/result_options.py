"""--format, --sidecar-dir and --min-score of `florence-jax predict`, and what they open."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from florence_jax.results.formats import FILES, FORMATS, SIDECARS, check_tasks
from florence_jax.results.scores import check_scored

if TYPE_CHECKING:
    from florence_jax.inference.predict import Page
    from florence_jax.inference.requests import Query
    from florence_jax.results.rows import Row

_HELP = """\
jsonl  a line for each image: {"id", "width", "height", "answers": [{"prompt", "result"}]}, or
       {"id", "error"}
csv    a line for each box (image, task, label, score, x0, y0, x1, y1) and for each answer in text;
       quads and outlines have their points in the column polygons; an image in which nothing is
       found, and one that failed (column error), has a line too. Cells that a spreadsheet would run
       as a formula begin with an apostrophe.
coco   one file: images, annotations and, as categories, the labels that were found
yolo   photo.txt with `class cx cy w h` (outlines: `class x1 y1 x2 y2 ...`), classes.txt, data.yaml
voc    photo.xml
txt    photo.txt with the text alone, as trainers of diffusion models read captions

yolo, voc and txt are sidecars: files beside the pictures. Those that exist are skipped, so that
the same command does what is missing; --overwrite writes them anew. coco, yolo, voc and txt hold
the answer to one task."""


class Writer(Protocol):
    """Takes the rows of a run, one by one."""

    def write(self, row: Row) -> None:
        """Raises `UnsuitableRowError` for a row that the format cannot hold."""
        ...


def add_format_options(predict: argparse.ArgumentParser) -> None:
    """--format and what belongs to it."""
    options = predict.add_argument_group("formats", _HELP)
    options.add_argument(
        "--format",
        choices=FORMATS,
        help="of the answers (default: jsonl, or csv where --output ends in .csv); parquet needs "
        "--output-dir",
    )
    options.add_argument(
        "--sidecar-dir",
        type=Path,
        metavar="DIR",
        help="write sidecars below DIR, which mirrors the pictures' folders, and not beside the "
        "pictures (default with --output-dir: that one)",
    )
    options.add_argument(
        "--min-score",
        type=_share,
        metavar="X",
        help="leave out boxes and outlines with a score below X, from 0 to 1, in files and "
        "drawings; a score is the geometric mean of the probabilities of a shape's location "
        "tokens, and 0.1 to 0.3 is usual for a box that fits",
    )


def check_formats(options: argparse.Namespace, queries: Sequence[Query]) -> str:
    """The format, or a refusal of what cannot go together; needs no model.

    Raises:
        ValueError: names the option or task, and what to do.
    """
    prompts = [query.prompt for query in queries]
    kind = options.format or ("csv" if options.output.lower().endswith(".csv") else "jsonl")
    check_tasks(kind, prompts)
    if options.min_score is not None:
        check_scored(prompts, options.compat)
    if options.sidecar_dir is not None and kind not in SIDECARS:
        raise ValueError(
            f"--sidecar-dir belongs to --format {', '.join(SIDECARS)}, and --format is {kind}: "
            "leave it out"
        )
    if options.all_pages and kind in SIDECARS:
        raise ValueError(
            f"--all-pages gives a file several answers, and --format {kind} has one file for each "
            "picture: choose jsonl, csv or coco"
        )
    if options.output_dir is not None:
        return kind
    if kind not in (*FILES, *SIDECARS):
        raise ValueError(f"--format {kind} belongs to --output-dir: give both")
    if kind in SIDECARS and options.output != "-":
        raise ValueError(
            f"--output is one file, and --format {kind} writes one for each picture: leave it out, "
            "or name a folder for them (--sidecar-dir DIR)"
        )
    return kind


class Results:
    """The rows' way into a format.

    Attributes:
        todo: the pictures that are still to be asked about.
        unsuitable: how many rows the format could not hold; each was said on stderr.
    """

    def __init__(self, writer: Writer, todo: Sequence[Path | Page] = ()) -> None:
        self._writer, self.todo, self.unsuitable = writer, list(todo), 0

    def write(self, row: Row) -> None:
        from florence_jax.results.rows import UnsuitableRowError

        try:
            self._writer.write(row)
        except UnsuitableRowError as error:
            self.unsuitable += 1
            print(f"{row['id']} is left out: {error}", file=sys.stderr)


@contextlib.contextmanager
def open_results(
    options: argparse.Namespace,
    kind: str,
    paths: Sequence[Path | Page],
    open_lines: Callable[[], AbstractContextManager[Callable[[str], Any]]],
) -> Iterator[Results]:
    """Where `predict` writes without --output-dir; what is in the way is said now.

    Args:
        options: of the command line.
        kind: what `check_formats` returned.
        paths: the pictures.
        open_lines: opens --output, and gives what adds a line to it.

    Raises:
        ValueError, OSError: the files cannot be written.
    """
    from florence_jax.inference.predict import Page
    from florence_jax.results.places import common_folder, relative_name

    files = [one.path if isinstance(one, Page) else one for one in paths]
    inputs = {os.path.realpath(one) for one in (*files, *options.images)}
    if options.output != "-" and os.path.realpath(options.output) in inputs:
        raise ValueError(f"--output {options.output} is one of the inputs: name another file")
    if kind in SIDECARS:
        with _sidecars(options, kind, files) as results:
            yield results
    elif kind == "coco":
        root = common_folder(options.images, files)
        file_name = functools.partial(relative_name, root=root)
        with _coco(options.output, options.overwrite, file_name) as writer:
            yield Results(writer, paths)
    else:
        with open_lines() as add_line:
            yield Results(line_writer(kind, add_line), paths)


def line_writer(kind: str, add_line: Callable[[str], Any]) -> Writer:
    """A writer of "csv" or "jsonl"."""
    from florence_jax.results.csv_rows import CsvRows
    from florence_jax.results.json_rows import JsonRows

    return CsvRows(add_line) if kind == "csv" else JsonRows(add_line)


@contextlib.contextmanager
def _coco(output: str, overwrite: bool, file_name: Callable[[str], str]) -> Iterator[Writer]:
    from florence_jax.results.coco import CocoFile
    from florence_jax.runtime.atomic_file import atomic_write
    from florence_jax.runtime.standard_streams import standard_output

    path = Path(output)
    if output == "-":
        writer = CocoFile(standard_output().write, file_name)
    elif path.exists() and not path.is_file() and not path.is_dir():  # a pipe or a device
        writer = CocoFile(path.write_text, file_name)
    elif path.exists() and not overwrite:
        raise FileExistsError(
            f"{output} exists already: pass --overwrite to replace it, or another --output"
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
def _sidecars(options: argparse.Namespace, kind: str, paths: Sequence[Path]) -> Iterator[Results]:
    from florence_jax.results.places import SidecarPlaces, common_folder
    from florence_jax.results.sidecars import check_sidecars, open_sidecars

    names = list(dict.fromkeys(map(str, paths)))
    root = common_folder(options.images, names)
    places = SidecarPlaces(root, options.sidecar_dir, SIDECARS[kind])
    there = check_sidecars(kind, places, names, options.images, overwrite=options.overwrite)
    if there and not options.quiet:
        print(skipped_text(len(there), len(names), kind), file=sys.stderr)
    todo = [Path(name) for name in names if name not in there]
    with open_sidecars(kind, places, overwrite=options.overwrite) as writer:
        yield Results(writer, todo)


def skipped_text(skipped: int, count: int, kind: str) -> str:
    """What is said where sidecars exist already."""
    return f"{skipped} of {count} {kind} files exist and are skipped (--overwrite writes them anew)"


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return number
