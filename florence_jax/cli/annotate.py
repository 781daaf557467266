"""`florence-jax annotate`: annotate images, merge annotations, and refine a model in a loop."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence_jax.annotation.schema import FILE
from florence_jax.annotation.settings import AnnotateSettings
from florence_jax.annotation.throughput import AnnotationCount, Throughput, save_throughput
from florence_jax.cli.annotate_options import (
    add_options,
    annotate_arguments,
    annotate_settings,
    thresholds,
)
from florence_jax.cli.options import decoding_settings, load_answering, say_on_stderr
from florence_jax.runtime.atomic_file import check_writable
from florence_jax.runtime.directory_lock import LOCK, directory_lock
from florence_jax.runtime.signals import INTERRUPTED, exit_on_interrupt

if TYPE_CHECKING:
    from florence_jax.annotation.noun_phrases import NounPhraseExtractor
    from florence_jax.batch.job import Source
    from florence_jax.batch.run import Summary
    from florence_jax.inference.base_pipeline import BasePipeline

# Features of a block's pictures stay on the device: 1.2 MB each for base in bfloat16.
_MOST_IN_BLOCK = 128

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
    """The command, added to the parser's."""
    annotate = commands.add_parser(
        "annotate",
        help="annotate images: captions, boxes, written text, grounded phrases",
        description="Annotate each image with captions of three levels, named and described "
        "boxes, written text, and the noun phrases of the captions with their boxes. Each image "
        "is encoded once; every answer has a confidence; what the filters take out is counted.",
        epilog=_EPILOG + thresholds(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(annotate)
    annotate.set_defaults(run=run_annotate, weights=None)


def run_annotate(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    several = options.process_index is not None or options.process_count is not None
    if options.extend and (options.merge or options.refine):
        raise ValueError("--extend belongs to annotating images: leave --merge and --refine out")
    if several and (options.merge or options.refine):
        raise ValueError(
            "--merge and --refine are the work of one process: leave --process-index and "
            "--process-count out"
        )
    if options.merge is not None:
        return _merge(options)
    if not options.images:
        raise ValueError("name the images to annotate, or annotations to --merge")
    return _refine(options) if options.refine is not None else _annotate(options)


def _annotate(options: argparse.Namespace) -> int:
    from florence_jax.annotation.image_source import find_pictures
    from florence_jax.annotation.job import AnnotateJob
    from florence_jax.annotation.noun_phrases_spacy import find_analyser
    from florence_jax.batch.process_share import find_share
    from florence_jax.batch.run import run_blocks
    from florence_jax.inference.multi_device import replicate_over_local_devices

    settings = annotate_settings(options)
    say = None if options.quiet else say_on_stderr
    pictures = find_pictures(options.images, options.image_root, say)
    analyser = find_analyser(options.analyser)
    share = find_share(options.process_index, options.process_count)
    blocks: dict[str, Any] = {
        "block_size": options.block_size,
        "default_size": functools.partial(_default_block_size, options.batch_size),
        "row_format": "jsonl",
        "workers": options.workers,
        "share": share,
        "extend": options.extend,
    }
    if options.dry_run:
        print(_plan(pictures, pictures.root, settings, analyser, options, blocks))
        return 0
    options.output.mkdir(parents=True, exist_ok=True)
    check_writable(options.output)
    pipeline = replicate_over_local_devices(load_answering(options, progress=not options.quiet))
    job = AnnotateJob(
        pipeline,
        settings,
        analyser,
        generation=decoding_settings(pipeline, options),
        constrained=not options.unconstrained,
        batch_size=options.batch_size,
    )
    count = AnnotationCount()
    with exit_on_interrupt(f"the same command goes on in {options.output}/"):
        summary = run_blocks(
            pictures,
            job,
            options.output,
            **blocks,
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
    if share.index == 0:
        # Another command of the same run may have come to its end too.
        with directory_lock(options.output, wait=True):
            _finish(options, pictures.root, analyser)
    return 1 if summary.errors else 0


def _merge(options: argparse.Namespace) -> int:
    from florence_jax.annotation.merge import merge_sets
    from florence_jax.annotation.noun_phrases_spacy import find_analyser
    from florence_jax.annotation.schema import read_annotations, write_annotations

    if options.images:
        raise ValueError("--merge takes annotations, not images: leave the images out")
    if not options.dry_run:
        _check_merge_output(options.output)
    analyser = find_analyser(options.analyser)
    merged = merge_sets(
        [read_annotations(path) for path in options.merge],
        fusion=options.fusion,
        captions=options.captions,
        overlap=annotate_settings(options).filters.overlap,
    )
    if options.dry_run:
        print(f"{len(merged)} images of {len(options.merge)} inputs would go into {options.output}")
        return 0
    with directory_lock(options.output):
        write_annotations(merged, options.output / FILE)
        _finish(options, options.image_root or Path(), analyser)
    return 0


def _check_merge_output(directory: Path) -> None:
    """Make sure, before annotations are read, that the result can be written."""
    directory.mkdir(parents=True, exist_ok=True)
    check_writable(directory)
    # A lock is all that a merge leaves which was stopped before it wrote anything.
    there = {path.name for path in directory.iterdir()} - {LOCK}
    if there and FILE not in there:
        raise ValueError(f"{directory} holds something else: name another --output")


def _refine(options: argparse.Namespace) -> int:
    from florence_jax.annotation.image_source import find_pictures
    from florence_jax.annotation.refine import Refine, refine
    from florence_jax.cli.options import model_from_anywhere

    if options.revision is not None or options.processor is not None:
        raise ValueError(
            "--refine names models by their directory alone: download that revision, or put the "
            "tokenizer into the directory, and leave --revision and --processor out"
        )
    pictures = find_pictures(options.images, options.image_root)
    _check_lists(options)
    loop = Refine(
        directory=Path(os.path.abspath(options.output)),
        # A directory is found from the checkout too.
        model=model_from_anywhere(options.model),
        rounds=options.rounds,
        recipe=Path(os.path.abspath(options.refine)),
        checkout=Path(os.path.abspath(options.checkout)),
        image_root=pictures.root,
        annotate=lambda chosen, output: annotate_arguments(options, chosen, output),
        also=options.also,
        questions=options.questions,
        words=options.words,
    )
    if options.dry_run:
        import shlex

        for phase in loop.phases():
            print(f"# {phase.name}\n{shlex.join(phase.command)}")
        return 0

    def say(line: str) -> None:
        if not options.quiet:
            print(f"florence-jax: {line}", file=sys.stderr, flush=True)

    return 0 if refine(loop, say) else INTERRUPTED


def _check_lists(options: argparse.Namespace) -> None:
    """Refuse lists that name other files in the checkout, where the loop's processes run."""
    from florence_jax.inference.image_files import images_listed

    if options.checkout.resolve() == Path.cwd():
        return
    for source in map(Path, options.images):
        if source.suffix.lower() != ".txt":
            continue
        relative = next((name for name in images_listed(source) if not os.path.isabs(name)), None)
        if relative is not None:
            raise ValueError(
                f"{source} names {relative}, which is another file in {options.checkout}, where "
                "the loop runs: write absolute paths, or run this in the checkout"
            )


def _finish(options: argparse.Namespace, root: Path, analyser: NounPhraseExtractor) -> None:
    from florence_jax.annotation.outputs import Products, make_products

    products = Products(exports=tuple(options.export), gallery=options.gallery)
    counted = make_products(options.output, options.output, root, analyser, products)
    if not options.quiet:
        print(counted.table())


def _plan(
    source: Source,
    root: Path,
    settings: AnnotateSettings,
    analyser: NounPhraseExtractor,
    options: argparse.Namespace,
    blocks: dict[str, Any],
) -> str:
    from florence_jax.batch.dry_run import describe_plan

    asked = [*settings.levels, *(name for name in ("regions", "ocr") if getattr(settings, name))]
    return "\n".join(
        [
            f"{len(source)} images below {root}, by {options.model}",
            f"asked: {', '.join(asked)}; grounding: {settings.ground}; completion: "
            f"{settings.complete}; proposals: {settings.proposals}; polygons: {settings.polygons}",
            f"noun phrases by: {analyser.name}",
            describe_plan(source, options.output, **blocks),
        ]
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
        device_busy=summary.busy,
        device=devices[0].device_kind,
        devices=len(devices),
    )
    save_throughput(measured, directory)
    return f"{measured.describe()}; {summary.errors} with errors"


def _state(summary: Summary, directory: Path) -> str:
    where = f"{summary.blocks - summary.missing} of {summary.blocks} blocks are in {directory}/"
    return f"{where}; the same command goes on with the rest" if summary.missing else where


def _default_block_size(batch_size: int) -> int:
    import jax

    from florence_jax.batch.run import default_block_size

    most = max(_MOST_IN_BLOCK, batch_size * jax.local_device_count())
    return min(most, default_block_size(batch_size))
