"""`florence-jax predict --output-dir`, for as many images as there are, and `verify-output`."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence_jax.cli.options import decoding_settings, load_answering, say_on_stderr
from florence_jax.cli.result_options import check_formats
from florence_jax.results.formats import BLOCKS, SIDECARS
from florence_jax.runtime.atomic_file import check_writable
from florence_jax.runtime.signals import INTERRUPTED, exit_on_interrupt

if TYPE_CHECKING:
    from florence_jax.batch.run import Summary
    from florence_jax.inference.requests import Query

# Options that mean something for a run alone, with what they are when they are not given.
_OWN = {
    "image_root": None,
    "block_size": None,
    "workers": None,
    "process_index": None,
    "process_count": None,
    "extend": False,
    "dry_run": False,
}


def add_run_options(predict: argparse.ArgumentParser) -> None:
    """--output-dir and what belongs to it."""
    options = predict.add_argument_group(
        "runs over many images",
        "With --output-dir, IMAGE may also be a .jsonl, .parquet or WebDataset .tar file, answers\n"
        "are written in blocks of rows (jsonl or parquet), and the same command goes on where it\n"
        "was stopped. Other formats are made of the blocks when the last one is there:\n"
        "answers.csv, annotations.json (coco), or sidecars below DIR. A directory of Parquet is\n"
        "one table of typed columns; other columns of input rows are JSON text in `extra`. The\n"
        "exit status is 1 where rows have errors, and 130 where the run was interrupted.",
    )
    options.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="write blocks of rows into this directory"
    )
    options.add_argument(
        "--image-root",
        type=Path,
        metavar="DIR",
        help="rows name pictures below this directory (default: that of their file)",
    )
    options.add_argument(
        "--block-size",
        type=int,
        metavar="N",
        help="images in a block (default: 512, 32 on a CPU, and at least four batches)",
    )
    options.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that read pictures (default: one for each core but one, at most 16)",
    )
    add_process_options(options)
    add_extend(options)
    options.add_argument(
        "--dry-run", action="store_true", help="say what would run, and load no model"
    )


def add_extend(options: Any) -> None:
    """--extend, to a parser or group."""
    options.add_argument(
        "--extend",
        action="store_true",
        help="the inputs have grown since the run in DIR began: do the new ones too, in blocks "
        "behind the others",
    )


def add_process_options(options: Any) -> None:
    """--process-index and --process-count, which `find_share` takes, to a parser or group."""
    options.add_argument(
        "--process-index",
        type=int,
        metavar="I",
        help="this is process I, from 0, of several that share DIR (default: what jax.distributed, "
        "SLURM, Open MPI or Cloud TPU says)",
    )
    options.add_argument("--process-count", type=int, metavar="N", help="how many there are")


def add_verify_output(commands: Any) -> None:
    """The command that checks what a run has written."""
    verify = commands.add_parser(
        "verify-output",
        help="check the rows, ids and checksums that predict --output-dir wrote",
        description="Check that DIR has every input's row, once, as it was written. The exit "
        "status is 0 if it has, and 1 if something is missing or wrong.",
    )
    verify.add_argument("directory", type=Path, metavar="DIR")
    verify.add_argument("--quiet", action="store_true", help="no progress bar")
    verify.set_defaults(run=_verify_output)


def check_no_run_options(options: argparse.Namespace) -> None:
    """Refuse options of a run where there is none.

    Raises:
        ValueError: names one of them.
    """
    for name, default in _OWN.items():
        if getattr(options, name) != default:
            raise ValueError(f"--{name.replace('_', '-')} belongs to --output-dir: give both")


def predict_into_directory(options: argparse.Namespace, queries: Sequence[Query]) -> int:
    """Run `florence-jax predict --output-dir`; the exit status."""
    from florence_jax.batch.draw import DrawnAnswers
    from florence_jax.batch.finished_run import FinishedRun
    from florence_jax.batch.output_files import check_format
    from florence_jax.batch.predict_job import PredictJob
    from florence_jax.batch.process_share import find_share
    from florence_jax.batch.run import default_block_size, run_blocks
    from florence_jax.batch.run_inputs import settle_inputs
    from florence_jax.batch.sources.open import open_source
    from florence_jax.inference.multi_device import replicate_over_local_devices

    if options.output != "-":
        raise ValueError("--output and --output-dir are two ways to write the answers: give one")
    kind = check_formats(options, queries)
    if options.overwrite and kind not in SIDECARS:
        raise ValueError(
            "--overwrite belongs to --output: a run goes on in its directory, and another one "
            "needs another --output-dir"
        )
    say = None if options.quiet else say_on_stderr
    source = open_source(
        options.images,
        queries,
        image_root=options.image_root,
        say=say,
        all_pages=options.all_pages,
    )
    finished = FinishedRun(options, kind, source)
    share = find_share(options.process_index, options.process_count)
    blocks: dict[str, Any] = {
        "block_size": options.block_size,
        "default_size": functools.partial(default_block_size, options.batch_size),
        "row_format": options.format if options.format in BLOCKS else None,
        "workers": options.workers,
        "share": share,
        "extend": options.extend,
    }
    if options.dry_run:
        from florence_jax.batch.dry_run import describe_plan

        tasks = ", ".join(query.prompt for query in queries) or "each row's own"
        print(f"{len(source)} images; tasks: {tasks}")
        print(describe_plan(source, options.output_dir, **blocks))
        return 0
    # What the end needs is looked for before the model is loaded.
    check_format(options.format or "jsonl")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    check_writable(options.output_dir)
    settle_inputs(options.output_dir, source, extend=options.extend)
    pipeline = replicate_over_local_devices(load_answering(options, progress=not options.quiet))
    job = PredictJob(
        pipeline,
        decoding_settings(pipeline, options),
        constrained=options.constrained,
        min_score=options.min_score,
        batch_size=options.batch_size,
        free_prompt=options.free_prompt,
    )
    job.check(queries)
    with exit_on_interrupt(_how_to_go_on(options.output_dir)):
        summary = run_blocks(
            source,
            job,
            options.output_dir,
            **blocks,
            after_block=DrawnAnswers(options.save_images) if options.save_images else None,
            progress=not options.quiet,
        )
    if not options.quiet:
        print(_summary(summary, options.output_dir), file=sys.stderr)
    if summary.missing:
        return INTERRUPTED
    unsuitable = finished.write()
    return 1 if summary.errors or unsuitable else 0


def _summary(summary: Summary, directory: Path) -> str:
    if not summary.rows and not summary.missing:
        return f"there was nothing left to do: all {summary.blocks} blocks are in {directory}/"
    per_second = summary.rows / summary.seconds
    lines = [
        f"{summary.rows} images in {summary.seconds:.1f} s ({per_second:.2f} images/s, "
        f"{summary.tokens / summary.seconds:.0f} tokens/s, compilation included), "
        f"{summary.errors} with errors; the device had work for {summary.busy:.1%} of the time"
    ]
    if summary.missing:
        done = summary.blocks - summary.missing
        lines.append(f"{done} of {summary.blocks} blocks are done; {_how_to_go_on(directory)}")
    else:
        lines.append(f"all {summary.blocks} blocks are in {directory}/")
    return "\n".join(lines)


def _how_to_go_on(directory: Path) -> str:
    return f"the same command goes on with what is missing in {directory}/"


def _verify_output(options: argparse.Namespace) -> int:
    from florence_jax.batch.verify import verify_output

    report = verify_output(options.directory, progress=not options.quiet and sys.stderr.isatty())
    print(report.describe())
    return 0 if report.is_complete else 1
