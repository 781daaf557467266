"""`florence-jax predict --output-dir`: a run in blocks, for any number of images."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from florence_jax.cli.options import decoding_settings, load_pipeline, say_on_stderr
from florence_jax.cli.predict_options import PredictOptions
from florence_jax.runtime.signals import INTERRUPTED, exit_on_interrupt

if TYPE_CHECKING:
    from florence_jax.batch.predict_job import PredictJob
    from florence_jax.batch.run import Summary


def predict_into_directory(options: PredictOptions, make_job: Callable[[], PredictJob]) -> int:
    """Run the command.

    Args:
        options: the inputs, the outputs, and how the run is divided.
        make_job: loads the model; called when nothing else can be refused.

    Returns:
        The exit status: 1 if rows have errors, 130 if the run was interrupted.
    """
    from florence_jax.batch.exports import DrawAnswers, open_export
    from florence_jax.batch.run import plan_run, run_blocks
    from florence_jax.batch.sources.open import open_source

    run, directory, folder = options.run, options.output.directory, options.output.save_images
    assert run is not None
    assert directory is not None
    source = open_source(
        options.images,
        options.queries,
        image_root=options.image_root,
        say=None if options.quiet else say_on_stderr,
        all_pages=options.all_pages,
    )
    plan = plan_run(source, directory, run)
    export = open_export(options.output, source, plan.row_format)
    if options.dry_run:
        tasks = ", ".join(query.prompt for query in options.queries) or "each row's own"
        print(f"{len(source)} images; tasks: {tasks}\n{plan.describe()}")
        return 0
    plan.prepare()
    job = make_job()
    job.check(options.queries)
    with exit_on_interrupt(_how_to_go_on(directory)):
        summary = run_blocks(
            source,
            job,
            directory,
            run,
            after_block=DrawAnswers(folder) if folder else None,
            progress=not options.quiet,
        )
    if not options.quiet:
        print(_summary(summary, directory), file=sys.stderr)
    if summary.missing:
        return INTERRUPTED
    unsuitable = export.write() if export else 0
    return 1 if summary.errors or unsuitable else 0


def load_job(options: PredictOptions) -> PredictJob:
    """Load the model, on all of this host's devices."""
    from florence_jax.batch.predict_job import PredictJob
    from florence_jax.inference.multi_device import replicate_over_local_devices

    pipeline = load_pipeline(options.model, progress=not options.quiet)
    pipeline = replicate_over_local_devices(pipeline)
    return PredictJob(
        pipeline,
        decoding_settings(pipeline, options.decoding),
        constrained=options.constrained,
        min_score=options.output.min_score,
        batch_size=options.batch_size,
        free_prompt=options.free_prompt,
    )


def _summary(summary: Summary, directory: Path) -> str:
    if not summary.rows and not summary.missing:
        return f"there was nothing left to do: all {summary.blocks} blocks are in {directory}/"
    per_second = summary.rows / summary.seconds
    share = summary.utilization
    busy = "" if share is None else f"; the device had work for {share:.1%} of the time"
    lines = [
        f"{summary.rows} images in {summary.seconds:.1f} s ({per_second:.2f} images/s, "
        f"{summary.tokens / summary.seconds:.0f} tokens/s, compilation included), "
        f"{summary.errors} with errors{busy}"
    ]
    if summary.missing:
        done = summary.blocks - summary.missing
        lines.append(f"{done} of {summary.blocks} blocks are done; {_how_to_go_on(directory)}")
    else:
        lines.append(f"all {summary.blocks} blocks are in {directory}/")
    return "\n".join(lines)


def _how_to_go_on(directory: Path) -> str:
    return f"the same command goes on with what is missing in {directory}/"
