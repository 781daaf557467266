"""`florence-jax predict`: answer tasks about images, into one file or into sidecars."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence_jax.cli.options import decoding_settings, load_pipeline, say_on_stderr
from florence_jax.cli.predict_dir import load_job, predict_into_directory
from florence_jax.cli.predict_options import PredictOptions, add_predict_options, predict_options
from florence_jax.processing import TASKS
from florence_jax.results.formats import SIDECARS, OutputOptions
from florence_jax.runtime.atomic_file import atomic_write, named_errors, remove_leftovers
from florence_jax.runtime.jsonl import LineWriter
from florence_jax.runtime.standard_streams import standard_output
from florence_jax.runtime.terminal_bar import terminal_bar

if TYPE_CHECKING:
    from florence_jax.inference.predict import Page, Prediction
    from florence_jax.results.row_writer import RowWriter
    from florence_jax.results.rows import Row

_EXAMPLES = """\
examples:
  florence-jax predict photo.jpg --task "<OD>"
  florence-jax predict photos/ --task "<CAPTION>" --task "<OCR>" --output captions.jsonl
  florence-jax predict photos/ --task "<MORE_DETAILED_CAPTION>" --format txt
  florence-jax predict photos/ --task "<OD>" --format yolo --sidecar-dir labels/ --min-score 0.1
  florence-jax predict photos/ --task "<OD>" --format coco --output annotations.json
  florence-jax predict photo.jpg --task "<OPEN_VOCABULARY_DETECTION>" --text cat --text dog \\
      --save-images drawn/
  florence-jax predict photo.jpg --task "<REGION_TO_DESCRIPTION>" --region 10,20,300,200
  florence-jax predict photo.jpg --task "<OD>" --constrained --label cat --label dog
  florence-jax predict list.txt --task "<DocVQA>What is the total?" --model ./my-fine-tune \\
      --free-prompt
  florence-jax predict photos/ more.tar --task "<CAPTION>" --output-dir captions/
  florence-jax verify-output captions/

tasks:
"""


def add_predict(commands: Any) -> None:
    """Add the command to the parser's."""
    tasks = "".join(
        f"  {task.token:<40}{'' if task.takes == 'nothing' else f'takes --{task.takes}'}".rstrip()
        + "\n"
        for task in TASKS.values()
    )
    predict = commands.add_parser(
        "predict",
        description="Answer one or more tasks about each image; one JSON line per image.",
        epilog=_EXAMPLES + tasks,
    )
    add_predict_options(predict)
    predict.set_defaults(run=run_predict)


def run_predict(arguments: argparse.Namespace) -> int:
    """Run the command; the exit status is 1 if an image failed."""
    from florence_jax.inference.declared_tasks import check_queries
    from florence_jax.inference.image_files import check_places

    options = predict_options(arguments)
    check_places(options.images)
    check_queries(
        options.queries,
        model=options.model.model,
        revision=options.model.revision,
        free_prompt=options.free_prompt,
    )
    if options.run is None:
        return _predict(options)
    return predict_into_directory(options, functools.partial(load_job, options))


def _predict(options: PredictOptions) -> int:
    from florence_jax.inference.image_files import find_images
    from florence_jax.inference.predict import image_rows, pages_of, predict
    from florence_jax.results.row_writer import write_rows

    started = time.monotonic()
    paths = find_images(options.images, None if options.quiet else say_on_stderr)
    paths = pages_of(paths) if options.all_pages else paths
    folder = options.output.save_images
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
    with open_output(options.output, paths) as (writer, todo):
        if not todo:
            return 0
        pipeline = load_pipeline(options.model, progress=not options.quiet)
        sampling = options.decoding.sampling
        predictions = predict(
            pipeline,
            todo,
            options.queries,
            generation=decoding_settings(pipeline, options.decoding),
            constrained=options.constrained,
            batch_size=options.batch_size,
            seed=sampling and sampling.seed,
            free_prompt=options.free_prompt,
        )
        count = len(todo) * len(options.queries)
        drawn = _Drawn(answer_bar(predictions, count, options.quiet), options)
        rows = _Noted(image_rows(drawn, len(options.queries)))
        unsuitable = write_rows(rows, writer)
    if not options.quiet:
        # Some formats have no place for a note.
        for note, images in rows.notes.items():
            say_on_stderr(f"{images} image{'s' if images > 1 else ''} with a note: {note}")
        seconds = time.monotonic() - started
        print(
            f"{count - drawn.failed} answers, {drawn.failed} failed, {len(todo)} images "
            f"in {seconds:.1f} s (compilation included)",
            file=sys.stderr,
        )
    return 1 if drawn.failed or unsuitable else 0


class _Drawn:
    """Predictions without what --min-score drops, drawn into --save-images.

    Attributes:
        failed: answers without a result, and drawings that were not written.
    """

    def __init__(self, predictions: Iterable[Prediction], options: PredictOptions) -> None:
        self._predictions, self._options = predictions, options
        self.failed = 0

    def __iter__(self) -> Iterator[Prediction]:
        from florence_jax.inference.predict import DrawingNames
        from florence_jax.results.draw import drawing_error
        from florence_jax.results.scores import drop_below

        names, folder = DrawingNames(), self._options.output.save_images
        for prediction in self._predictions:
            if prediction.image is None or prediction.result is None:
                self.failed += 1
                yield prediction
                continue
            result, error = drop_below(prediction.result, self._options.output.min_score), None
            if folder is not None:
                error = drawing_error(prediction.image, result, Path(folder, names(prediction)))
                self.failed += error is not None
            yield dataclasses.replace(prediction, result=result, drawing_error=error)


class _Noted:
    """Rows on their way to a writer.

    Attributes:
        notes: how many rows have each note of reading the image.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = rows
        self.notes: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Row]:
        for row in self._rows:
            self.notes.update([row["image_note"]] if "image_note" in row else [])
            yield row


def answer_bar(items: Iterable, total: int, quiet: bool) -> Iterable:
    """A progress bar of answers."""
    return terminal_bar(items, total=total, unit="answer", shown=not quiet, smoothing=0.1)


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
    from florence_jax.results.row_writer import line_writer
    from florence_jax.results.sidecars import common_folder, relative_name

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
        yield writer.write
    except KeyboardInterrupt:
        print("\nno COCO file is written before its last image", file=sys.stderr)
        raise
    writer.save()


@contextlib.contextmanager
def _sidecars(
    options: OutputOptions, paths: Sequence[Path]
) -> Iterator[tuple[RowWriter, Sequence[Path]]]:
    from florence_jax.results.row_writer import skipped_text
    from florence_jax.results.sidecars import (
        SidecarPlaces,
        check_sidecars,
        common_folder,
        open_sidecars,
    )

    kind, overwrite = options.kind, options.overwrite
    names = list(dict.fromkeys(map(str, paths)))
    root = common_folder(options.inputs, names)
    places = SidecarPlaces(root, options.sidecar_dir, SIDECARS[kind])
    there = check_sidecars(kind, places, names, options.inputs, overwrite=overwrite)
    if there and not options.quiet:
        print(skipped_text(len(there), len(names), kind), file=sys.stderr)
    todo = [Path(name) for name in names if name not in there]
    with open_sidecars(kind, places, overwrite=overwrite) as writer:
        yield writer.write, todo
