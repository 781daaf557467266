"""`florence-jax annotate`: annotate images, merge annotations, and refine a model in a loop."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence_jax.annotation.schema import FILE
from florence_jax.annotation.statistics import AnnotationCount, Throughput, save_throughput
from florence_jax.cli.annotate_options import (
    AnnotateOptions,
    add_options,
    annotate_arguments,
    annotate_options,
    thresholds,
)
from florence_jax.cli.options import decoding_settings, load_pipeline, say_on_stderr
from florence_jax.runtime.atomic_file import check_writable
from florence_jax.runtime.directory_lock import LOCK, directory_lock
from florence_jax.runtime.signals import INTERRUPTED, exit_on_interrupt

if TYPE_CHECKING:
    from florence_jax.annotation.noun_phrases import NounPhraseExtractor
    from florence_jax.annotation.settings import AnnotateSettings
    from florence_jax.batch.run import Summary
    from florence_jax.inference.base_pipeline import BasePipeline

_EPILOG = """\
examples:
  florence-jax annotate photos/ --output annotated/
  florence-jax annotate photos/ --output annotated/ --polygons phrases --export rows --gallery 50
  florence-jax annotate photos/ --output boxes/ --only regions --threshold box_score=0.3
  florence-jax annotate photos/ --output annotated/ --dry-run
  florence-jax annotate --merge base/ large/ --output both/ --fusion average
  florence-jax annotate photos/ --output loop/ --refine train/recipes/lora.py --rounds 2

what is written into --output:
  block-*.jsonl     the annotations, one image a line (florence_jax/annotation/schema.py has the
                    schema), in blocks as of predict --output-dir: the same command goes on where
                    it was stopped, and florence-jax verify-output checks them
  statistics.json   counts and averages in the manner of FLD-5B's tables, what was rejected and
                    why, and how fast it went (throughput/ has each call's figures)
  plots/            distributions of boxes and confidences
  instances.coco.json, captions.coco.json   with --export coco
  rows.jsonl        image, prefix, suffix for every task, with --export rows
  gallery/          with --gallery

Several machines that see the same --output take a share each with --process-index and
--process-count; process 0 makes everything but the blocks when the last of them is there.

The trainer reads the directory as it is:
  florence-jax train --config train/recipes/lora.py --data.train \\
      '[{"kind": "annotations", "path": "annotated", "image_root": "photos"}]'

thresholds (--threshold NAME=VALUE), with their defaults:
"""


def add_annotate(commands: Any) -> None:
    """Add the command to the parser's."""
    annotate = commands.add_parser(
        "annotate",
        description="Annotate each image with captions of three levels, named and described "
        "boxes, written text, and the noun phrases of the captions with their boxes. Each image "
        "is encoded once; every answer has a confidence; what the filters take out is counted.",
        epilog=_EPILOG + thresholds(),
    )
    add_options(annotate)
    annotate.set_defaults(run=run_annotate)


def run_annotate(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    _check_mode(arguments)
    options = annotate_options(arguments)
    if options.merge is not None:
        return _merge(options)
    return _annotate(options) if arguments.refine is None else _refine(options, arguments)


def _check_mode(arguments: argparse.Namespace) -> None:
    several = arguments.process_index is not None or arguments.process_count is not None
    if arguments.extend and (arguments.merge or arguments.refine):
        raise ValueError("--extend belongs to annotating images: leave --merge and --refine out")
    if several and (arguments.merge or arguments.refine):
        raise ValueError(
            "--merge and --refine are the work of one process: leave --process-index and "
            "--process-count out"
        )
    if arguments.merge is not None and arguments.images:
        raise ValueError("--merge takes annotations, not images: leave the images out")
    if arguments.merge is None and not arguments.images:
        raise ValueError("name the images to annotate, or annotations to --merge")


def _annotate(options: AnnotateOptions) -> int:
    from florence_jax.annotation.job import AnnotateJob, find_image_folder
    from florence_jax.annotation.noun_phrase_extractors import find_extractor
    from florence_jax.batch.run import plan_run, run_blocks
    from florence_jax.inference.pipeline import replicate_over_local_devices

    say = None if options.quiet else say_on_stderr
    images = find_image_folder(options.images, options.image_root, say)
    extractor = find_extractor(options.noun_phrases)
    plan = plan_run(images, options.output, options.run)
    if options.dry_run:
        print(f"{len(images)} images below {images.root}, by {options.model.model}")
        print(f"{_asked(options.settings)}\nnoun phrases by: {extractor.name}\n{plan.describe()}")
        return 0
    plan.prepare()
    pipeline = load_pipeline(options.model, progress=not options.quiet)
    pipeline = replicate_over_local_devices(pipeline)
    job = AnnotateJob(
        pipeline,
        options.settings,
        extractor,
        generation=decoding_settings(pipeline, options.decoding),
        constrained=options.constrained,
        batch_size=options.run.batch_size,
    )
    count = AnnotationCount()
    with exit_on_interrupt(f"the same command goes on in {options.output}/"):
        summary = run_blocks(
            images,
            job,
            options.output,
            options.run,
            after_block=count,
            progress=not options.quiet,
        )
    told = "no block was finished" if summary.missing else "nothing was left to do"
    if summary.rows:
        told = _measured(summary, count.total, pipeline, options.output)
    if not options.quiet:
        print(f"{told}\n{_state(summary, options.output)}", file=sys.stderr)
    if summary.missing:
        return INTERRUPTED
    if options.run.share.index == 0:
        # Another process of the same run may have finished too.
        with directory_lock(options.output, wait=True):
            _finish(options, images.root, extractor)
    return 1 if summary.errors else 0


def _merge(options: AnnotateOptions) -> int:
    from florence_jax.annotation.merge import merge_sets
    from florence_jax.annotation.noun_phrase_extractors import find_extractor
    from florence_jax.annotation.schema import read_annotations, write_annotations

    inputs = options.merge or ()
    if not options.dry_run:
        _check_merge_output(options.output)
    extractor = find_extractor(options.noun_phrases)
    merged = merge_sets(
        [read_annotations(path) for path in inputs],
        fusion=options.fusion,
        captions=options.captions,
        overlap=options.settings.filters.overlap,
    )
    if options.dry_run:
        print(f"{len(merged)} images of {len(inputs)} inputs would go into {options.output}")
        return 0
    with directory_lock(options.output):
        write_annotations(merged, options.output / FILE)
        _finish(options, options.image_root or Path(), extractor)
    return 0


def _check_merge_output(directory: Path) -> None:
    """Make sure, before annotations are read, that the result can be written."""
    directory.mkdir(parents=True, exist_ok=True)
    check_writable(directory)
    # A lock is all that a merge leaves which was stopped before it wrote anything.
    there = {path.name for path in directory.iterdir()} - {LOCK}
    if there and FILE not in there:
        raise ValueError(f"{directory} holds something else: name another --output")


def _refine(options: AnnotateOptions, arguments: argparse.Namespace) -> int:
    from florence_jax.annotation.job import find_image_folder
    from florence_jax.annotation.refine import Refine, refine
    from florence_jax.cli.options import model_from_anywhere

    if options.model.revision is not None or options.model.processor is not None:
        raise ValueError(
            "--refine names models by their directory alone: download that revision, or put the "
            "tokenizer into the directory, and leave --revision and --processor out"
        )
    images = find_image_folder(options.images, options.image_root)
    _check_lists(options.images, arguments.checkout)
    loop = Refine(
        directory=Path(os.path.abspath(options.output)),
        # A directory is found from the checkout too.
        model=model_from_anywhere(options.model.model),
        rounds=arguments.rounds,
        recipe=Path(os.path.abspath(arguments.refine)),
        checkout=Path(os.path.abspath(arguments.checkout)),
        image_root=images.root,
        annotate=lambda chosen, output: annotate_arguments(arguments, chosen, output),
        also=arguments.also,
        questions=arguments.questions,
        words=arguments.words,
    )
    if options.dry_run:
        for phase in loop.phases():
            print(f"# {phase.name}\n{shlex.join(phase.command)}")
        return 0

    def say(line: str) -> None:
        if not options.quiet:
            print(f"florence-jax: {line}", file=sys.stderr, flush=True)

    return 0 if refine(loop, say) else INTERRUPTED


def _check_lists(images: Sequence[str], checkout: Path) -> None:
    """Refuse lists that name other files in the checkout, where the loop's processes run."""
    from florence_jax.inference.image_files import images_listed

    if checkout.resolve() == Path.cwd():
        return
    for source in map(Path, images):
        if source.suffix.lower() != ".txt":
            continue
        relative = next((name for name in images_listed(source) if not os.path.isabs(name)), None)
        if relative is not None:
            raise ValueError(
                f"{source} names {relative}, which is another file in {checkout}, where the loop "
                "runs: write absolute paths, or run this in the checkout"
            )


def _finish(options: AnnotateOptions, root: Path, extractor: NounPhraseExtractor) -> None:
    from florence_jax.annotation.outputs import AnnotationOutputs, write_outputs

    products = AnnotationOutputs(exports=options.export, gallery=options.gallery)
    counted = write_outputs(options.output, options.output, root, extractor, products)
    if not options.quiet:
        print(counted.table())


def _asked(settings: AnnotateSettings) -> str:
    asked = [*settings.levels, *(name for name in ("regions", "ocr") if getattr(settings, name))]
    return (
        f"asked: {', '.join(asked)}; grounding: {settings.ground}; completion: "
        f"{settings.complete}; proposals: {settings.proposals}; polygons: {settings.polygons}"
    )


def _measured(summary: Summary, annotations: int, pipeline: BasePipeline, directory: Path) -> str:
    """Note how fast this call was, and say it."""
    import jax

    leaf = jax.tree.leaves(pipeline.programs.params)[0]
    devices = list(leaf.devices()) if isinstance(leaf, jax.Array) else jax.local_devices()[:1]
    measured = Throughput(
        images=summary.rows,
        annotations=annotations,
        tokens=summary.tokens,
        seconds=summary.seconds,
        device_busy=summary.utilization,
        device=devices[0].device_kind,
        devices=len(devices),
    )
    save_throughput(measured, directory)
    return f"{measured.describe()}; {summary.errors} with errors"


def _state(summary: Summary, directory: Path) -> str:
    where = f"{summary.blocks - summary.missing} of {summary.blocks} blocks are in {directory}/"
    return f"{where}; the same command goes on with the rest" if summary.missing else where
