"""`florence-jax evaluate ade20k` and `mask-folders`: mIoU of a segmentation network."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence_jax.cli.backbone_run import TowerOptions
from florence_jax.cli.evaluate_classes import default_output, refuse_asking
from florence_jax.cli.options import options_from, run_options
from florence_jax.cli.run_outcome import ran_to_end
from florence_jax.runtime.signals import INTERRUPTED

if TYPE_CHECKING:
    from florence_jax.batch.blocks import RunOptions
    from florence_jax.batch.run import Summary
    from florence_jax.evaluation.image_masks import MaskPlan
    from florence_jax.evaluation.report import Report

_OWN_OPTIONS = {"whole": False, "reduce_zero_label": False, "save_images": None}


@dataclass(frozen=True, kw_only=True)
class EvaluateMasksOptions:
    """The checked options; as in the help of `florence-jax evaluate`.

    Attributes:
        tower: the network.
        run: how the run is divided.
    """

    tower: TowerOptions
    run: RunOptions
    output: Path
    data: Path
    whole: bool
    save_images: Path | None
    worst: int
    quiet: bool

    def __post_init__(self) -> None:
        if self.tower.mesh is not None:
            raise ValueError("--mesh is not for masks, whose windows run on one device")


def add_mask_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of data sets of masks."""
    group = parser.add_argument_group("data sets of masks")
    group.add_argument(
        "--whole",
        action="store_true",
        help="see an image as a whole (default: by overlapping windows)",
    )
    group.add_argument(
        "--reduce-zero-label",
        action="store_true",
        help="0 in a mask does not count, and class n is n - 1, as in ADE20K",
    )
    group.add_argument(
        "--save-images",
        type=Path,
        metavar="DIR",
        help="draw truth and answer on each image into DIR",
    )


def refuse_mask_options(arguments: argparse.Namespace) -> None:
    """Refuse options of masks for another data set.

    Raises:
        ValueError: one is given.
    """
    from florence_jax.evaluation.image_masks import MASK_BENCHMARKS

    for name, default in _OWN_OPTIONS.items():
        if getattr(arguments, name) != default:
            raise ValueError(
                f"--{name.replace('_', '-')} is for {', '.join(MASK_BENCHMARKS)}: leave it out"
            )


def evaluate_masks(arguments: argparse.Namespace) -> int:
    """Run the command; the exit status is 130 if interrupted."""
    from florence_jax.evaluation.image_masks import check_mask_classes, plan_masks

    refuse_asking(arguments)
    if arguments.names is not None:
        raise ValueError(f"--names is not for {arguments.benchmark}: leave it out")
    plan = plan_masks(
        arguments.benchmark,
        arguments.data,
        split=arguments.split,
        limit=arguments.limit,
        reduce_zero_label=arguments.reduce_zero_label,
    )
    tower = options_from(TowerOptions, arguments)
    options = options_from(
        EvaluateMasksOptions,
        arguments,
        tower=tower,
        run=run_options(arguments),
        output=arguments.output or default_output(tower.model, plan),
    )
    if arguments.score_only and options.save_images is not None:
        raise ValueError("--save-images needs the network, and --score-only loads none")
    directory = options.output
    if arguments.dry_run:
        print(_describe(plan, options))
        return 0
    names = _class_names(tower)
    check_mask_classes(plan, len(names), tower.model)
    if not arguments.score_only and not ran_to_end(directory, lambda: _segment(plan, options)):
        return INTERRUPTED
    report = _report(plan, options, names)
    print(report.describe())
    print(f"report.json, examples.jsonl and worst.html are in {directory}/", file=sys.stderr)
    return 0


def _class_names(tower: TowerOptions) -> tuple[str, ...]:
    """The stored names of the network's classes, or numbers."""
    from florence_jax.adapters import resolve_model
    from florence_jax.checkpoint.repository import read_json_object
    from florence_jax.segmentation.storage import read_segmenter_config

    directory = resolve_model(tower.model, tower.revision)
    count = read_segmenter_config(directory).num_classes
    stored = (read_json_object(directory, "config.json") or {}).get("label_names") or ()
    if stored and len(stored) != count:
        raise ValueError(
            f"{directory / 'config.json'} has {len(stored)} label_names for {count} classes: mend "
            "or remove them"
        )
    return tuple(map(str, stored)) or tuple(f"class {number}" for number in range(count))


def _segment(plan: MaskPlan, options: EvaluateMasksOptions) -> Summary:
    from florence_jax.batch.run import run_blocks
    from florence_jax.evaluation.run import ROWS
    from florence_jax.evaluation.segment_job import SegmentJob
    from florence_jax.segmentation.storage import load_segmenter

    given: dict[str, Any] = {
        name: value for name, value in vars(options.tower).items() if value is not None
    }
    segmenter, params = load_segmenter(given.pop("model"), **given)
    job = SegmentJob(
        segmenter,
        params,
        plan.masks,
        reduce_zero_label=plan.reduce_zero_label,
        whole=options.whole,
        batch_size=options.run.batch_size,
        drawn=options.save_images,
    )
    directory = options.output / ROWS
    return run_blocks(plan.source(), job, directory, options.run, progress=not options.quiet)


def _report(plan: MaskPlan, options: EvaluateMasksOptions, names: tuple[str, ...]) -> Report:
    from florence_jax.batch.manifest import read_manifest
    from florence_jax.evaluation.mask_report import report_masks
    from florence_jax.evaluation.report import write_report
    from florence_jax.evaluation.run import ROWS, rows_in_order

    directory, items = options.output, plan.source().items
    rows = rows_in_order(items, directory / ROWS)
    manifest = read_manifest(directory / ROWS) or {}
    settings = {"run": manifest.get("job"), "data": str(options.data)}
    report = report_masks(plan, rows, names=names, model=options.tower.model, settings=settings)
    images = {item.id: item.image for item in items}
    write_report(report, directory, images, options.worst)
    return report


def _describe(plan: MaskPlan, options: EvaluateMasksOptions) -> str:
    """What would run, as text."""
    asked = len(plan.names[: plan.limit])
    return "\n".join(
        [
            f"{plan.benchmark} {plan.split}: {asked} of {len(plan.names)} images in {plan.images}",
            f"masks: {plan.masks}",
            f"seen {'as a whole' if options.whole else 'by overlapping windows'}",
            f"model: {options.tower.model}, output: {options.output}/",
        ]
    )
