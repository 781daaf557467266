"""`florence-jax evaluate`: recompute the published tables, and score custom data."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence_jax.cli.evaluate_classes import evaluate_classes
from florence_jax.cli.evaluate_masks import add_mask_options, evaluate_masks, refuse_mask_options
from florence_jax.cli.options import (
    DECODING,
    MODEL,
    PROCESSES,
    DecodingOptions,
    ModelOptions,
    add_shared,
    decoding_from,
    decoding_settings,
    load_pipeline,
    options_from,
    run_options,
)
from florence_jax.cli.run_outcome import ran_to_end
from florence_jax.runtime.signals import INTERRUPTED

if TYPE_CHECKING:
    from florence_jax.batch.blocks import RunOptions
    from florence_jax.batch.image_reader import FileBelow
    from florence_jax.batch.run import Summary
    from florence_jax.evaluation.report import Report
    from florence_jax.evaluation.run import Plan

_DESCRIPTION = """\
Ask a model all of a data set's questions and judge the answers by the metric of the published
tables. Prints each figure beside the published one of that model, with the difference, and writes
into --output
  report.json     the figures and what they were taken with
  examples.jsonl  every row with its answer, truth and score, for error analysis
  worst.html      the worst answers, drawn beside the truth
  rows/           the answers as they came; the same command goes on where it was stopped
Decoding is the checkpoint's own (of those published: 3 beams, no run of three tokens twice), with
at most as many new tokens as the list below has, unless --beams or --max-new-tokens says otherwise.
The paper does not say how its tables were decoded."""

_EXAMPLES = """\
examples:
  florence-jax evaluate --published
  florence-jax evaluate coco-captions --data coco/ --model microsoft/Florence-2-base --dry-run
  florence-jax evaluate refcoco --data refer/ --split testA --model microsoft/Florence-2-large-ft
  florence-jax evaluate coco-detection --data coco/ --limit 500 --dtype bfloat16
  florence-jax evaluate own --data rows.jsonl --model ./my-fine-tune
  florence-jax evaluate vqav2 --data vqa/ --split test-dev  # submission.json
  florence-jax evaluate imagenet --data imagenet/ --model davit_tiny --split real
  florence-jax evaluate image-folders --data photos/ --model runs/my-classes
  florence-jax evaluate mask-folders --data masks/ --model runs/mine/export --save-images drawn/

data sets, their splits, most new tokens, and what --data holds:
"""


def add_evaluate(commands: Any) -> None:
    """Add the command to the parser's."""
    evaluate = commands.add_parser(
        "evaluate",
        description=_DESCRIPTION,
        epilog=_EXAMPLES + _list_of_data_sets(),
    )
    evaluate.add_argument(
        "benchmark", nargs="?", metavar="DATASET", help="a name below, or own for your own file"
    )
    evaluate.add_argument(
        "--published", action="store_true", help="print every published figure, and stop"
    )
    evaluate.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="folder of the data set as its authors publish it; for own a .jsonl of image, prefix, "
        "suffix, a .json in COCO's layout, or a folder that florence-jax data check reads",
    )
    evaluate.add_argument(
        "--split", help="default: the first of the data set's; of own, the only one"
    )
    evaluate.add_argument(
        "--image-root", type=Path, metavar="DIR", help="of own: where its images are"
    )
    evaluate.add_argument(
        "--names",
        type=Path,
        metavar="FILE",
        help="of image-folders: names of the model's classes, one a line (default: those of its "
        "config.json)",
    )
    evaluate.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="default: florence-jax-evaluation/MODEL/DATASET-SPLIT, -first-N with --limit",
    )
    evaluate.add_argument(
        "--limit", type=int, metavar="N", help="only the first N examples; figures then differ"
    )
    evaluate.add_argument(
        "--prompt",
        metavar="TEXT",
        help="ask this instead; {input} stands for the question, sentence or expression",
    )
    evaluate.add_argument(
        "--worst", type=int, default=24, metavar="N", help="on the page (default: %(default)s)"
    )
    evaluate.add_argument(
        "--dry-run", action="store_true", help="check the files and say what would run"
    )
    evaluate.add_argument(
        "--score-only", action="store_true", help="score the rows that are there, load no model"
    )
    add_shared(evaluate, *MODEL, "--compat", "--weights", *DECODING, "--free-prompt")
    evaluate.add_argument(
        "--constrained", action="store_true", help="allow only answers that parse completely"
    )
    add_mask_options(evaluate)
    add_shared(evaluate, "--batch-size", *PROCESSES)
    evaluate.add_argument("--quiet", action="store_true", help="no progress bar")
    evaluate.set_defaults(run=run_evaluate)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """The checked options of `florence-jax evaluate` beside those of its plan, as in the help.

    Attributes:
        run: how the run is divided.
    """

    model: ModelOptions
    decoding: DecodingOptions
    run: RunOptions
    output: Path
    data: Path
    constrained: bool
    free_prompt: bool
    worst: int
    quiet: bool


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Run the command; the exit status is 1 if an example has no answer, 130 if interrupted."""
    if arguments.published:
        from florence_jax.evaluation.paper_results import format_tables

        print(format_tables())
        return 0
    if arguments.benchmark is None or arguments.data is None:
        raise ValueError(
            "name a data set and where it is: florence-jax evaluate coco-captions --data coco/ "
            "(florence-jax evaluate --help lists them)"
        )
    from florence_jax.evaluation.image_classes import CLASS_BENCHMARKS
    from florence_jax.evaluation.image_masks import MASK_BENCHMARKS
    from florence_jax.evaluation.run import ROWS, check_scoring, plan_evaluation

    if arguments.benchmark in MASK_BENCHMARKS:
        return evaluate_masks(arguments)
    refuse_mask_options(arguments)
    if arguments.benchmark in CLASS_BENCHMARKS:
        return evaluate_classes(arguments)
    if arguments.names is not None:
        raise ValueError(f"--names is for {', '.join(CLASS_BENCHMARKS)}: leave it out")
    plan = plan_evaluation(
        arguments.benchmark,
        arguments.data,
        split=arguments.split,
        limit=arguments.limit,
        prompt=arguments.prompt,
        image_root=arguments.image_root,
    )
    options = _options(arguments, plan)
    directory = options.output
    for note in (*plan.dataset.notes, *check_scoring(plan)):
        print(f"note: {note}", file=sys.stderr)
    if arguments.dry_run:
        print(_describe(plan, options))
        return 0
    if not arguments.score_only:
        _check_images(plan)
        if not ran_to_end(directory, lambda: _answer(plan, options, directory / ROWS)):
            return INTERRUPTED
    report = _report(plan, options)
    print(report.describe())
    print(f"report.json, examples.jsonl and worst.html are in {directory}/", file=sys.stderr)
    return 1 if report.failed else 0


def _options(arguments: argparse.Namespace, plan: Plan) -> EvaluateOptions:
    decoding = decoding_from(arguments)
    if decoding.max_new_tokens is None and plan.known is not None:
        decoding = dataclasses.replace(decoding, max_new_tokens=plan.known.max_new_tokens)
    return options_from(
        EvaluateOptions,
        arguments,
        model=options_from(ModelOptions, arguments),
        decoding=decoding,
        run=run_options(arguments),
        output=arguments.output or _default_output(arguments.model, plan),
    )


def _answer(plan: Plan, options: EvaluateOptions, directory: Path) -> Summary:
    from florence_jax.batch.predict_job import PredictJob
    from florence_jax.batch.run import run_blocks
    from florence_jax.inference.pipeline import replicate_over_local_devices
    from florence_jax.processing.request_check import check_task

    source = plan.source()
    pipeline = load_pipeline(options.model, progress=not options.quiet)
    pipeline = replicate_over_local_devices(pipeline)
    job = PredictJob(
        pipeline,
        decoding_settings(pipeline, options.decoding),
        constrained=options.constrained,
        batch_size=options.run.batch_size,
        free_prompt=options.free_prompt,
        declared=plan.own_tasks,
    )
    job.check(item.queries[0] for item in plan.items[:1])
    declared = pipeline.declared_tasks | plan.own_tasks
    for item in plan.items:
        check_task(item.queries[0].prompt, declared=declared, free_prompt=options.free_prompt)
    return run_blocks(source, job, directory, options.run, progress=not options.quiet)


def _report(plan: Plan, options: EvaluateOptions) -> Report:
    from florence_jax.batch.manifest import read_manifest
    from florence_jax.evaluation.report import write_report
    from florence_jax.evaluation.run import ROWS, read_all_rows, score_rows

    directory = options.output
    rows = read_all_rows(plan, directory / ROWS)
    manifest = read_manifest(directory / ROWS) or {}
    report = score_rows(
        plan,
        rows,
        model=options.model.model,
        settings={
            "prompt": plan.prompt,
            "run": manifest.get("job"),
            "data": str(options.data),
            "notes": list(plan.dataset.notes),
        },
    )
    images = {item.id: item.image for item in plan.items}
    write_report(report, directory, images, options.worst)
    return report


def _describe(plan: Plan, options: EvaluateOptions) -> str:
    """What would run, as text."""
    from florence_jax.batch.image_reader import image_name
    from florence_jax.evaluation.paper_results import published_score

    known, model = plan.known, options.model.model
    absent = _absent(plan)
    found = f"{len(plan.items)} of {len(plan.dataset.items)} examples"
    lines = [
        f"{plan.benchmark} {plan.split}: {found} of {_files(plan)}",
        f"asked: {plan.prompt}" + (f" ({known.prompt_source})" if known else ""),
        f"first: {plan.items[0].queries[0].prompt}, {image_name(plan.items[0].image)}",
        f"decoding: {_decoding(options.decoding)}",
        f"{len(absent)} images are missing"
        + (f", such as {image_name(absent[0])}: those examples count as wrong" if absent else ""),
        f"model: {model}, output: {options.output}/",
    ]
    column = known.columns.get(plan.split) if known else None
    figure = published_score(model, column) if column else None
    if figure is not None:
        lines.append(f"published: {figure.column} {figure.value} ({figure.source})")
    return "\n".join(lines)


def _files(plan: Plan) -> str:
    """The data set's files; the first of those with one for each image."""
    files = list(map(str, plan.dataset.files))
    more = f" and {len(files) - 3} more files" if len(files) > 4 else ""
    return ", ".join(files[:3] if more else files) + more


def _absent(plan: Plan) -> list[FileBelow]:
    """The images that are missing."""
    from florence_jax.batch.image_reader import FileBelow

    return [
        item.image
        for item in plan.items
        if isinstance(item.image, FileBelow) and not _is_file(item.image)
    ]


def _is_file(image: FileBelow) -> bool:
    try:
        return Path(image.root, image.name).is_file()
    except (OSError, ValueError):  # too long, or no name of a file
        return False


def _check_images(plan: Plan) -> None:
    """Refuse a wrong folder before a model is loaded; a single missing image gets a row."""
    from florence_jax.batch.image_reader import image_name

    absent = _absent(plan)
    if len(absent) == len(plan.items):
        raise ValueError(
            f"none of the {len(absent)} images is there, such as {image_name(absent[0])!r:.80} "
            f"below {absent[0].root}: name the folder that they are in"
            + (" by --image-root" if plan.known is None else "")
        )
    if absent:
        print(
            f"note: {len(absent)} images are missing, such as {image_name(absent[0])}: those "
            "examples count as wrong",
            file=sys.stderr,
        )


def _decoding(options: DecodingOptions) -> str:
    beams = "the checkpoint's" if options.beams is None else f"{options.beams} beams"
    limit = options.max_new_tokens or "what the model can hold"
    return f"{beams}, at most {limit} new tokens"


def _default_output(model: str, plan: Plan) -> Path:
    name = re.sub(r"[^\w.-]+", "_", model.rstrip("/").rsplit("/", 1)[-1]) or "model"
    part = "" if plan.limit is None else f"-first-{plan.limit}"
    return Path("florence-jax-evaluation") / name / f"{plan.benchmark}-{plan.split}{part}"


def _list_of_data_sets() -> str:
    from florence_jax.evaluation.image_classes import CLASS_BENCHMARKS
    from florence_jax.evaluation.image_masks import MASK_BENCHMARKS
    from florence_jax.evaluation.registry import BENCHMARKS

    lines = [
        f"  {name:<16}{', '.join(one.splits):<20}{one.max_new_tokens:>4}\n      {one.files}\n"
        for name, one in BENCHMARKS.items()
    ]
    lines.append("\nfor DaViTs with a classifier (see florence-jax classify):\n")
    lines += [
        f"  {name:<16}{', '.join(one.splits)}\n      {one.files}\n"
        for name, one in CLASS_BENCHMARKS.items()
    ]
    lines.append("\nfor segmentation networks (see florence-jax train):\n")
    lines += [
        f"  {name:<16}{', '.join(one.splits)}\n      {one.files}\n"
        for name, one in MASK_BENCHMARKS.items()
    ]
    return "".join(lines)
