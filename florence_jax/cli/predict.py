"""`florence-jax predict`: answer tasks about images, into one file or into sidecars."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence_jax.cli.options import decoding_settings, load_pipeline, say_on_stderr
from florence_jax.cli.predict_dir import predict_into_directory
from florence_jax.cli.predict_options import PredictOptions, add_predict_options, predict_options
from florence_jax.cli.predict_output import open_output
from florence_jax.processing import TASKS
from florence_jax.runtime.atomic_file import remove_leftovers
from florence_jax.runtime.terminal_bar import terminal_bar

if TYPE_CHECKING:
    from florence_jax.inference.predict import Prediction
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

    options = predict_options(arguments)
    check_queries(
        options.queries,
        model=options.model.model,
        revision=options.model.revision,
        free_prompt=options.free_prompt,
    )
    return predict_into_directory(options) if options.run else _predict(options)


def _predict(options: PredictOptions) -> int:
    from florence_jax.inference.image_files import find_images
    from florence_jax.inference.predict import pages_of, predict
    from florence_jax.inference.prediction_rows import image_rows
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
        from florence_jax.inference.predict import PictureNames
        from florence_jax.results.draw import drawing_error
        from florence_jax.results.scores import drop_below

        names, folder = PictureNames(), self._options.output.save_images
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
