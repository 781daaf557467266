"""The options of `florence-jax predict`: the parser, and what it gives the command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from florence_jax.cli.options import (
    DECODING,
    MODEL,
    PROCESSES,
    SAMPLING,
    DecodingOptions,
    ModelOptions,
    add_shared,
    decoding_from,
    options_from,
    run_options,
)
from florence_jax.inference.requests import Query
from florence_jax.results.formats import BLOCKS, FORMATS, SIDECARS, OutputOptions, check_tasks
from florence_jax.results.scores import check_scored

if TYPE_CHECKING:
    from florence_jax.batch.blocks import RowFormat, RunOptions

_FORMATS_HELP = """\
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

yolo, voc and txt are sidecars: files beside the images. Those that exist are skipped, so that the
same command does what is missing; --overwrite writes them anew. coco, yolo, voc and txt hold the
answer to one task."""

_RUNS_HELP = """\
With --output-dir, IMAGE may also be a .jsonl, .parquet or WebDataset .tar file, answers
are written in blocks of rows (jsonl or parquet), and the same command goes on where it
was stopped. Other formats are made of the blocks when the last one is there:
answers.csv, annotations.json (coco), or sidecars below DIR. A directory of Parquet is
one table of typed columns; other columns of input rows are JSON text in `extra`. The
exit status is 1 where rows have errors, and 130 where the run was interrupted."""

# Options that mean something with --output-dir alone, and their defaults.
_RUN_DEFAULTS = {
    "image_root": None,
    "block_size": None,
    "workers": None,
    "process_index": None,
    "process_count": None,
    "extend": False,
    "dry_run": False,
}


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """The checked options of `florence-jax predict`; help texts explain those not listed here.

    Attributes:
        queries: what is asked about each image.
        output: where rows go, in which format.
        run: how a run with --output-dir is divided; None without one.
    """

    images: tuple[str, ...]
    queries: tuple[Query, ...]
    model: ModelOptions
    decoding: DecodingOptions
    output: OutputOptions
    run: RunOptions | None
    image_root: Path | None = None
    all_pages: bool = False
    constrained: bool = False
    free_prompt: bool = False
    batch_size: int = 8
    dry_run: bool = False
    quiet: bool = False


def predict_options(arguments: argparse.Namespace) -> PredictOptions:
    """The options of parsed arguments.

    Raises:
        ValueError: names options or tasks that do not go together, and the remedy.
    """
    queries = _queries(arguments)
    kind = arguments.format or ("csv" if arguments.output.lower().endswith(".csv") else "jsonl")
    _check(arguments, kind, [query.prompt for query in queries])
    output = options_from(
        OutputOptions,
        arguments,
        kind=kind,
        inputs=tuple(arguments.images),
        file=arguments.output,
        directory=arguments.output_dir,
    )
    run = None
    if arguments.output_dir is not None:
        given = cast("RowFormat", arguments.format) if arguments.format in BLOCKS else None
        run = run_options(arguments, row_format=given)
    return options_from(
        PredictOptions,
        arguments,
        images=tuple(arguments.images),
        queries=queries,
        model=options_from(ModelOptions, arguments),
        decoding=decoding_from(arguments),
        output=output,
        run=run,
    )


def _queries(arguments: argparse.Namespace) -> tuple[Query, ...]:
    text = arguments.text
    text = text[0] if text and len(text) == 1 else text
    return tuple(
        Query(prompt=task, text=text, region=arguments.region, labels=arguments.label)
        for task in arguments.task
    )


def _check(arguments: argparse.Namespace, kind: str, prompts: Sequence[str]) -> None:
    check_tasks(kind, prompts)
    if arguments.min_score is not None:
        check_scored(prompts, arguments.compat)
    if arguments.label is not None and not arguments.constrained:
        raise ValueError("--label confines only constrained answers: pass --constrained too")
    if arguments.all_pages and kind in SIDECARS:
        raise ValueError(
            f"--all-pages gives a file several answers, and --format {kind} has one file for each "
            "image: choose jsonl, csv or coco"
        )
    if arguments.output_dir is not None:
        return
    for name, default in _RUN_DEFAULTS.items():
        if getattr(arguments, name) != default:
            raise ValueError(f"--{name.replace('_', '-')} belongs to --output-dir: give both")
    if not prompts:
        raise ValueError("--task is missing: florence-jax predict --help lists the tasks")


def add_predict_options(predict: argparse.ArgumentParser) -> None:
    """Add every option of the command to its parser."""
    predict.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image file, directory of images, or .txt file with one path per line; see also "
        "--output-dir",
    )
    predict.add_argument(
        "--task",
        action="append",
        default=[],
        help="a task below, or any prompt of a fine-tune (see --free-prompt); repeat it to ask "
        "several",
    )
    predict.add_argument(
        "--text", action="append", help="the task's text; repeat it for several classes"
    )
    predict.add_argument(
        "--region",
        type=_region,
        metavar="X0,Y0,X1,Y1",
        help="the task's region, in pixels of the upright image",
    )
    add_shared(predict, *MODEL, "--compat", "--adapter", "--weights")
    predict.add_argument(
        "--output",
        default="-",
        metavar="FILE",
        help="the file for the answers (default: standard output)",
    )
    predict.add_argument(
        "--overwrite", action="store_true", help="replace an existing --output, or sidecars"
    )
    predict.add_argument(
        "--save-images", type=Path, metavar="DIR", help="draw each answer on its image into DIR"
    )
    add_shared(predict, "--free-prompt", *DECODING, *SAMPLING)
    predict.add_argument(
        "--constrained",
        action="store_true",
        help="allow only answers that parse completely: boxes of four ordered coordinates and so "
        "on, also where --max-new-tokens cuts them",
    )
    predict.add_argument(
        "--label",
        action="append",
        help="with --constrained: a label that answers may use; repeat it for each",
    )
    predict.add_argument(
        "--all-pages",
        action="store_true",
        help="answer for every page of a TIFF and every frame of an animation, as IMAGE#page=N "
        "(default: the first, and a note in its row)",
    )
    add_shared(predict, "--batch-size")
    predict.add_argument("--quiet", action="store_true", help="no progress bar, no summary")
    _add_format_options(predict.add_argument_group("formats", _FORMATS_HELP))
    _add_run_options(predict.add_argument_group("runs over many images", _RUNS_HELP))


def _add_format_options(group: Any) -> None:
    group.add_argument(
        "--format",
        choices=FORMATS,
        help="of the answers (default: jsonl, or csv where --output ends in .csv); parquet needs "
        "--output-dir",
    )
    group.add_argument(
        "--sidecar-dir",
        type=Path,
        metavar="DIR",
        help="write sidecars below DIR, which mirrors the images' folders, and not beside the "
        "images (default with --output-dir: that one)",
    )
    group.add_argument(
        "--min-score",
        type=_min_score,
        metavar="X",
        help="leave out boxes and outlines with a score below X, from 0 to 1, in files and "
        "drawings; a score is the geometric mean of the probabilities of a shape's location "
        "tokens, and 0.1 to 0.3 is usual for a box that fits",
    )


def _add_run_options(group: Any) -> None:
    group.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="write blocks of rows into this directory"
    )
    group.add_argument(
        "--image-root",
        type=Path,
        metavar="DIR",
        help="rows name images below this directory (default: that of their file)",
    )
    add_shared(group, "--block-size", *PROCESSES, "--extend")
    group.add_argument(
        "--dry-run", action="store_true", help="say what would run, and load no model"
    )


def _region(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} is not four numbers X0,Y0,X1,Y1")
    return numbers


def _min_score(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return number
