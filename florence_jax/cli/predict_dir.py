"""`florence-jax predict --output-dir`: a run in blocks, for any number of images."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from florence_jax.cli.options import decoding_settings, load_pipeline, say_on_stderr
from florence_jax.cli.predict_options import PredictOptions
from florence_jax.cli.run_outcome import how_to_go_on, outcome_text
from florence_jax.runtime.signals import INTERRUPTED, exit_on_interrupt

if TYPE_CHECKING:
    from florence_jax.batch.predict_job import PredictJob


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
    with exit_on_interrupt(how_to_go_on(directory)):
        summary = run_blocks(
            source,
            job,
            directory,
            run,
            after_block=DrawAnswers(folder) if folder else None,
            progress=not options.quiet,
        )
    if not options.quiet:
        print(outcome_text(summary, directory), file=sys.stderr)
    if summary.missing:
        return INTERRUPTED
    unsuitable = export.write() if export else 0
    return 1 if summary.errors or unsuitable else 0


def load_job(options: PredictOptions) -> PredictJob:
    """Load the model, on all of this host's devices."""
    from florence_jax.batch.predict_job import PredictJob
    from florence_jax.inference.pipeline import replicate_over_local_devices

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
