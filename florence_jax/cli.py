"""The command line: `florence-jax predict`, `evaluate`, `demo`, `export`, `bench` and so on."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from florence_jax.annotation.command import add_annotate
from florence_jax.batch.command import (
    add_run_options,
    add_verify_output,
    check_no_run_options,
    predict_into_directory,
)
from florence_jax.bench.command import add_bench
from florence_jax.evaluation.command import add_evaluate
from florence_jax.inference.command import (
    add_decoding_options,
    add_model_options,
    decoding_settings,
    load_answering,
)
from florence_jax.inference.export_command import add_export
from florence_jax.inference.json_text import json_text
from florence_jax.inference.malloc import add_malloc_option, restart_with_tuned_malloc
from florence_jax.processing import TASKS

if TYPE_CHECKING:
    from florence_jax.inference.requests import Query

_PREDICT_EXAMPLES = """\
examples:
  florence-jax predict photo.jpg --task "<OD>"
  florence-jax predict photos/ --task "<CAPTION>" --task "<OCR>" --output captions.jsonl
  florence-jax predict photo.jpg --task "<OPEN_VOCABULARY_DETECTION>" --text cat --text dog \\
      --save-images drawn/
  florence-jax predict photo.jpg --task "<REGION_TO_DESCRIPTION>" --region 10,20,300,200
  florence-jax predict photo.jpg --task "<OD>" --constrained --label cat --label dog
  florence-jax predict list.txt --task "<DocVQA>What is the total?" --model ./my-fine-tune
  florence-jax predict photos/ more.tar --task "<CAPTION>" --output-dir captions/
  florence-jax verify-output captions/

tasks:
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 where an image failed, or 2 for a wrong call."""
    options = _parser().parse_args(arguments)
    try:
        # Not where another program calls this function: the process is not ours then.
        if arguments is None and hasattr(options, "malloc_settings"):
            restart_with_tuned_malloc(options.malloc_settings)
        return options.run(options)
    except KeyboardInterrupt:
        print("\ninterrupted; what was finished is written", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        # Every error that a user can mend is one of these, and says how.
        print(f"florence-jax: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="florence-jax", description="Florence-2 in JAX: captions, boxes, masks and text."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_predict(commands)
    add_verify_output(commands)
    _add_demo(commands)
    add_export(commands)
    add_evaluate(commands)
    add_annotate(commands)
    add_bench(commands)
    return parser


def _add_predict(commands: Any) -> None:
    tasks = "".join(
        f"  {task.token:<40}{'' if task.takes == 'nothing' else f'takes --{task.takes}'}".rstrip()
        + "\n"
        for task in TASKS.values()
    )
    predict = commands.add_parser(
        "predict",
        help="answer tasks about images",
        description="Answer one or more tasks about each image; one JSON line per answer.",
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
        help="a task below, or any prompt of a fine-tune; repeat it to ask several",
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
        help="JSON lines go here (default: standard output)",
    )
    predict.add_argument("--overwrite", action="store_true", help="replace an existing --output")
    predict.add_argument(
        "--save-images", type=Path, metavar="DIR", help="draw each answer on its image into here"
    )
    add_decoding_options(predict)
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
    add_malloc_option(predict)
    predict.add_argument("--quiet", action="store_true", help="no progress bar, no summary")
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
    add_malloc_option(demo)
    demo.set_defaults(run=_demo, max_new_tokens=120)


def _predict(options: argparse.Namespace) -> int:
    from florence_jax.inference.drawing import draw_result
    from florence_jax.inference.export import result_to_json
    from florence_jax.inference.predict import PictureNames, find_images, pages_of, predict

    queries = _queries(options)
    if options.output_dir is not None:
        return predict_into_directory(options, queries)
    check_no_run_options(options)
    if not queries:
        raise ValueError("--task is missing: florence-jax predict --help lists the tasks")
    paths = find_images(options.images)
    paths = pages_of(paths) if options.all_pages else paths
    if options.save_images is not None:
        options.save_images.mkdir(parents=True, exist_ok=True)
    names, failed, started = PictureNames(), 0, time.monotonic()
    with _open_output(options.output, options.overwrite) as output:
        pipeline = load_answering(options, progress=not options.quiet)
        settings = decoding_settings(pipeline, options)
        predictions = predict(
            pipeline,
            paths,
            queries,
            generation=settings,
            constrained=options.constrained,
            batch_size=options.batch_size,
        )
        for prediction in _progress(predictions, len(paths) * len(queries), options.quiet):
            print(json_text(result_to_json(prediction.record())), file=output)
            # Each line is out before the next is begun: an interrupted run keeps what it has.
            output.flush()
            if prediction.image is None or prediction.result is None:
                failed += 1
            elif options.save_images is not None:
                drawn = draw_result(prediction.image, prediction.result)
                drawn.save(options.save_images / names(prediction))
    if not options.quiet:
        seconds = time.monotonic() - started
        print(
            f"{len(paths) * len(queries) - failed} answers, {failed} failed, {len(paths)} images "
            f"in {seconds:.1f} s (compilation included)",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _demo(options: argparse.Namespace) -> int:
    from florence_jax.inference.export import result_to_json
    from florence_jax.inference.shapes import (
        brief,
        enlarged_answer,
        held_out_scenes,
        shapes_pipeline,
        show,
    )
    from florence_jax.inference.side_by_side import enlarged, save_side_by_side

    options.output.mkdir(parents=True, exist_ok=True)
    pipeline = shapes_pipeline(options.dtype or "float32", quantize=options.quantize)
    settings, count = decoding_settings(pipeline, options), len(held_out_scenes())
    right, scene = 0, ""
    with (options.output / "results.jsonl").open("w", encoding="utf-8") as output:
        for shown in _progress(show(pipeline, settings), count, False):
            record = {name: value for name, value in vars(shown).items() if name != "picture"}
            record["right"] = shown.right
            print(json_text(result_to_json(record)), file=output)
            picture = enlarged(shown.picture)
            titled = {
                f"{title}: {shown.prompt}": {
                    shown.task: enlarged_answer(answer, picture.width / shown.picture.width)
                }
                for title, answer in (("truth", shown.truth), ("answer", shown.answer))
            }
            name = f"{shown.task.strip('<>').lower()}.png"
            save_side_by_side(options.output / shown.scene / name, picture, titled)
            if shown.scene != scene:
                print(f"scene {shown.scene}")
            scene, right = shown.scene, right + shown.right
            print(f"  {shown.prompt}{'' if shown.right else '  (wrong)'}")
            print(f"    truth   {brief(shown.truth)}\n    answer  {brief(shown.answer)}")
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
def _open_output(name: str, overwrite: bool) -> Iterator[TextIO]:
    if name == "-":
        yield sys.stdout
        return
    if Path(name).exists() and not overwrite:
        raise FileExistsError(
            f"{name} exists already: pass --overwrite to replace it, or another --output"
        )
    with open(name, "w", encoding="utf-8") as output:
        yield output


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
