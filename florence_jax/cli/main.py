"""The command line: `florence-jax predict`, `evaluate`, `demo`, `export`, `bench` and so on."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence_jax.bench.command import add_bench
from florence_jax.cli.annotate import add_annotate
from florence_jax.cli.convert import add_convert
from florence_jax.cli.evaluate import add_evaluate
from florence_jax.cli.export import add_export
from florence_jax.cli.help import DESCRIPTION, EPILOG, CommandParser, VersionAction
from florence_jax.cli.options import (
    add_adapter_option,
    add_decoding_options,
    add_free_prompt_option,
    add_model_options,
    add_sampling_options,
    decoding_settings,
    load_answering,
    say_on_stderr,
)
from florence_jax.cli.predict_dir import (
    add_run_options,
    add_verify_output,
    check_no_run_options,
    predict_into_directory,
)
from florence_jax.cli.result_options import add_format_options, check_formats, open_results
from florence_jax.processing import TASKS
from florence_jax.runtime.atomic_file import named_errors, remove_leftovers
from florence_jax.runtime.directory_lock import directory_lock
from florence_jax.runtime.jsonl import LineWriter, json_text
from florence_jax.runtime.program import run_program
from florence_jax.runtime.standard_streams import standard_output

if TYPE_CHECKING:
    from florence_jax.inference.requests import Query

_PREDICT_EXAMPLES = """\
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 where an image failed, or 2 for a wrong call."""
    return run_program("florence-jax", functools.partial(_run, arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.run is None:
        parser.print_help()
        return 0
    options.own_process = arguments is None
    return options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="florence-jax",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-V",
        "--version",
        action=VersionAction,
        nargs=0,
        default=argparse.SUPPRESS,
        help="say the versions at work, and leave",
    )
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    _add_predict(commands)
    add_verify_output(commands)
    _add_demo(commands)
    add_export(commands)
    add_convert(commands)
    add_evaluate(commands)
    add_annotate(commands)
    add_bench(commands)
    _add_train(commands)
    return parser


def _add_predict(commands: Any) -> None:
    tasks = "".join(
        f"  {task.token:<40}{'' if task.takes == 'nothing' else f'takes --{task.takes}'}".rstrip()
        + "\n"
        for task in TASKS.values()
    )
    predict = commands.add_parser(
        "predict",
        help="answer tasks about images: caption, detect, segment, read; as JSON, CSV, COCO, "
        "YOLO, VOC, text or Parquet",
        description="Answer one or more tasks about each image; one JSON line per image.",
        epilog=_PREDICT_EXAMPLES + tasks,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    add_model_options(predict)
    add_adapter_option(predict)
    predict.add_argument(
        "--weights",
        metavar="MODEL",
        help="where --model is a directory of exported programs without weights, the checkpoint "
        "that it was exported from",
    )
    predict.add_argument(
        "--output",
        default="-",
        metavar="FILE",
        help="the answers go here (default: standard output)",
    )
    predict.add_argument(
        "--overwrite", action="store_true", help="replace an existing --output, or sidecars"
    )
    predict.add_argument(
        "--save-images", type=Path, metavar="DIR", help="draw each answer on its image into here"
    )
    add_free_prompt_option(predict)
    add_decoding_options(predict)
    add_sampling_options(predict)
    predict.add_argument(
        "--constrained",
        action="store_true",
        help="allow only answers that can be read whole: boxes of four ordered coordinates and so "
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
    predict.add_argument("--batch-size", type=int, default=8, help="default: %(default)s")
    predict.add_argument("--quiet", action="store_true", help="no progress bar, no summary")
    add_format_options(predict)
    add_run_options(predict)
    predict.set_defaults(run=_predict)


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="run every task offline: a small trained model on scenes that it never saw",
        description="Run all 15 tasks offline with the model that the library carries: a small "
        "Florence-2, trained on a synthetic world of shapes and drawn words, on scenes that it "
        "never saw. Every answer is drawn beside the truth.",
    )
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("florence-jax-demo"),
        metavar="DIR",
        help="drawn answers and results.jsonl go here (default: %(default)s)",
    )
    add_decoding_options(demo)
    demo.set_defaults(run=_demo, max_new_tokens=120)


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        add_help=False,
        prefix_chars="\0",  # tyro reads the flags, which are the fields of the settings
        help="train or fine-tune a model by a recipe; needs the extra `train`",
    )
    train.add_argument("flags", nargs="*")
    train.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    # Importing it needs the packages of the extra.
    from florence_jax.cli.train import end_process, main

    status = main(options.flags)
    return end_process(status) if options.own_process else status


def _predict(options: argparse.Namespace) -> int:
    from florence_jax.inference.declared_tasks import check_queries
    from florence_jax.inference.image_files import find_images
    from florence_jax.inference.predict import PictureNames, Prediction, pages_of, predict
    from florence_jax.results.drawn_file import drawing_error
    from florence_jax.results.rows import image_rows
    from florence_jax.results.scores import drop_below

    queries = _queries(options)
    check_queries(
        queries, model=options.model, revision=options.revision, free_prompt=options.free_prompt
    )
    if options.output_dir is not None:
        return predict_into_directory(options, queries)
    kind = check_formats(options, queries)
    check_no_run_options(options)
    if not queries:
        raise ValueError("--task is missing: florence-jax predict --help lists the tasks")
    paths = find_images(options.images, None if options.quiet else say_on_stderr)
    paths = pages_of(paths) if options.all_pages else paths
    if options.save_images is not None:
        options.save_images.mkdir(parents=True, exist_ok=True)
        remove_leftovers(options.save_images)
    names, failed, started = PictureNames(), 0, time.monotonic()

    def drawn(predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """The predictions, counted and drawn on their way, without what --min-score drops."""
        nonlocal failed
        for prediction in predictions:
            if prediction.image is None or prediction.result is None:
                failed += 1
                yield prediction
                continue
            result, error = drop_below(prediction.result, options.min_score), None
            if options.save_images is not None:
                path = options.save_images / names(prediction)
                error = drawing_error(prediction.image, result, path)
                failed += error is not None
            yield dataclasses.replace(prediction, result=result, drawing_error=error)

    open_lines = functools.partial(_open_output, options.output, options.overwrite)
    with open_results(options, kind, paths, open_lines) as results:
        paths = results.todo
        if not paths:
            return 0
        pipeline = load_answering(options, progress=not options.quiet)
        settings = decoding_settings(pipeline, options)
        predictions = predict(
            pipeline,
            paths,
            queries,
            generation=settings,
            constrained=options.constrained,
            batch_size=options.batch_size,
            seed=options.seed,
            free_prompt=options.free_prompt,
        )
        shown = _progress(predictions, len(paths) * len(queries), options.quiet)
        noted: Counter[str] = Counter()
        for row in image_rows(drawn(shown), len(queries)):
            noted.update([row["image_note"]] if "image_note" in row else [])
            results.write(row)
    if not options.quiet:
        # Some formats have no place for a note.
        for note, count in noted.items():
            say_on_stderr(f"{count} image{'s' if count > 1 else ''} with a note: {note}")
        seconds = time.monotonic() - started
        print(
            f"{len(paths) * len(queries) - failed} answers, {failed} failed, {len(paths)} images "
            f"in {seconds:.1f} s (compilation included)",
            file=sys.stderr,
        )
    return 1 if failed or results.unsuitable else 0


def _demo(options: argparse.Namespace) -> int:
    options.output.mkdir(parents=True, exist_ok=True)
    with directory_lock(options.output):
        remove_leftovers(options.output)
        return _show_demo(options)


def _show_demo(options: argparse.Namespace) -> int:
    from florence_jax.demo.bundled_model import (
        SCORES_NOTE,
        brief,
        enlarged_answer,
        held_out_scenes,
        shapes_pipeline,
        show,
    )
    from florence_jax.results.compare_grid import enlarged, save_side_by_side
    from florence_jax.results.instances import result_to_json

    pipeline = shapes_pipeline(options.dtype or "float32", quantize=options.quantize)
    settings, count = decoding_settings(pipeline, options), len(held_out_scenes())
    right, scene = 0, ""
    with LineWriter(options.output / "results.jsonl", overwrite=True) as output:
        for shown in _progress(show(pipeline, settings), count, False):
            record = {name: value for name, value in vars(shown).items() if name != "picture"}
            record["right"] = shown.right
            output.write(json_text(result_to_json(record)))
            picture = enlarged(shown.picture)
            factor = picture.width / shown.picture.width
            prompt = shown.prompt.replace(">", "> ").strip()  # lines may break between tokens
            verdict = f"{'right' if shown.right else 'wrong'} answer: {prompt}"
            titled = {
                title: {shown.task: enlarged_answer(answer, factor)}
                for title, answer in (
                    (f"truth: {prompt}", shown.truth),
                    (verdict, shown.answer),
                )
            }
            save_side_by_side(
                options.output / shown.scene / f"{shown.task.strip('<>').lower()}.png",
                picture,
                titled,
                right={verdict: shown.right},
                note="" if isinstance(shown.answer, str) else SCORES_NOTE,
            )
            if shown.scene != scene:
                print(f"scene {shown.scene}")
            scene, right = shown.scene, right + shown.right
            print(f"  {shown.prompt}{'' if shown.right else '  (wrong)'}")
            print(f"    truth   {brief(shown.truth)}\n    answer  {brief(shown.answer)}")
    print(SCORES_NOTE)
    print(
        f"{right} of {count} answers are right: text to the letter, shapes by an IoU of 0.5. All "
        f"of them, drawn beside the truth, and results.jsonl are in {options.output}/"
    )
    return 0


def _queries(options: argparse.Namespace) -> list[Query]:
    from florence_jax.inference.requests import Query

    text = options.text[0] if options.text and len(options.text) == 1 else options.text
    return [
        Query(prompt=task, text=text, region=options.region, labels=options.label)
        for task in options.task
    ]


@contextlib.contextmanager
def _open_output(name: str, overwrite: bool) -> Iterator[Callable[[str], None]]:
    """What writes a line to --output; nothing that is there is changed before the first one."""
    if name == "-":
        output = standard_output()

        def write(line: str) -> None:
            with named_errors("standard output"):
                print(line, file=output, flush=True)

        yield write
        return
    with LineWriter(name, overwrite=overwrite) as file:
        yield file.write


def _progress(items: Iterable, total: int, quiet: bool) -> Iterable:
    from tqdm import tqdm

    # Nothing to see on a dumb terminal but noise in the log.
    return tqdm(items, total=total, unit="answer", disable=True if quiet else None, smoothing=0.1)


def _region(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} is not four numbers X0,Y0,X1,Y1")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
