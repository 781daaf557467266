"""`florence-jax evaluate imagenet` and `image-folders`: accuracy of a DaViT with a classifier."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from florence_jax.cli.backbone_run import TowerOptions, load, read_names
from florence_jax.cli.options import options_from, run_options
from florence_jax.cli.run_outcome import ran_to_end
from florence_jax.runtime.signals import INTERRUPTED

if TYPE_CHECKING:
    from florence_jax.batch.blocks import RunOptions
    from florence_jax.batch.run import Summary
    from florence_jax.evaluation.image_classes import ClassPlan
    from florence_jax.evaluation.image_masks import MaskPlan
    from florence_jax.evaluation.report import Report

# Options of data sets that ask questions, and their defaults.
_ASKING = {
    "prompt": None,
    "image_root": None,
    "processor": None,
    "compat": None,
    "weights": None,
    "quantize": None,
    "beams": None,
    "max_new_tokens": None,
    "free_prompt": False,
    "constrained": False,
}


@dataclass(frozen=True, kw_only=True)
class EvaluateClassesOptions:
    """The checked options; as in the help of `florence-jax evaluate`.

    Attributes:
        tower: the model.
        names: of its classes; empty for those of its config.json.
        run: how the run is divided.
    """

    tower: TowerOptions
    names: tuple[str, ...]
    run: RunOptions
    output: Path
    data: Path
    worst: int
    quiet: bool


def evaluate_classes(arguments: argparse.Namespace) -> int:
    """Run the command; the exit status is 1 if an image has no answer, 130 if interrupted."""
    from florence_jax.evaluation.image_classes import plan_classes

    refuse_asking(arguments)
    tower = options_from(TowerOptions, arguments)
    names = _names(arguments, tower)
    plan = plan_classes(
        arguments.benchmark,
        arguments.data,
        split=arguments.split,
        limit=arguments.limit,
        names=names,
    )
    options = options_from(
        EvaluateClassesOptions,
        arguments,
        tower=tower,
        names=names,
        run=run_options(arguments),
        output=arguments.output or default_output(tower.model, plan),
    )
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)
    directory = options.output
    if arguments.dry_run:
        print(_describe(plan, options))
        return 0
    if not arguments.score_only and not ran_to_end(directory, lambda: _classify(plan, options)):
        return INTERRUPTED
    report = _report(plan, options)
    print(report.describe())
    print(f"report.json, examples.jsonl and worst.html are in {directory}/", file=sys.stderr)
    return 1 if report.failed else 0


def refuse_asking(arguments: argparse.Namespace) -> None:
    """Refuse options of data sets that ask questions.

    Raises:
        ValueError: one is given.
    """
    for name, default in _ASKING.items():
        if getattr(arguments, name) != default:
            raise ValueError(
                f"--{name.replace('_', '-')} belongs to data sets that ask questions, not to "
                f"{arguments.benchmark}: leave it out"
            )


def _names(arguments: argparse.Namespace, tower: TowerOptions) -> tuple[str, ...]:
    from florence_jax.backbone.load import read_label_names
    from florence_jax.evaluation.image_classes import OWN_FOLDERS

    if arguments.names is not None:
        return read_names(arguments.names)
    # ImageNet's folders have ids for names, whatever names the model has.
    own = arguments.benchmark == OWN_FOLDERS
    return read_label_names(tower.model, tower.revision) if own else ()


def _classify(plan: ClassPlan, options: EvaluateClassesOptions) -> Summary:
    from florence_jax.batch.backbone_job import ClassifyJob
    from florence_jax.batch.run import run_blocks
    from florence_jax.evaluation.image_classes import TOP, check_classes
    from florence_jax.evaluation.run import ROWS

    backbone, params = load(options.tower)
    job = ClassifyJob(backbone, params, top=TOP, batch_size=options.run.batch_size)
    check_classes(plan, backbone.config.num_classes, options.tower.model)
    source, directory = plan.source(), options.output / ROWS
    return run_blocks(
        source, job, directory, options.run, columns=job.columns, progress=not options.quiet
    )


def _report(plan: ClassPlan, options: EvaluateClassesOptions) -> Report:
    from florence_jax.batch.manifest import read_manifest
    from florence_jax.evaluation.image_classes import report_classes
    from florence_jax.evaluation.report import write_report
    from florence_jax.evaluation.run import ROWS, rows_in_order

    directory, items = options.output, plan.source().items
    rows = rows_in_order(items, directory / ROWS)
    manifest = read_manifest(directory / ROWS) or {}
    settings = {"run": manifest.get("job"), "data": str(options.data), "notes": list(plan.notes)}
    report = report_classes(plan, rows, model=options.tower.model, settings=settings)
    images = {item.id: item.image for item in items}
    write_report(report, directory, images, options.worst)
    return report


def _describe(plan: ClassPlan, options: EvaluateClassesOptions) -> str:
    """What would run, as text."""
    images = plan.images
    asked = len(images.paths[: plan.limit])
    return "\n".join(
        [
            f"{plan.benchmark} {plan.split}: {asked} of {len(images.paths)} images below "
            f"{options.data}",
            f"{len(images.names)} classes: {', '.join(images.names[:3])} ...",
            f"model: {options.tower.model}, output: {options.output}/",
        ]
    )


def default_output(model: str, plan: ClassPlan | MaskPlan) -> Path:
    """The directory of a run without --output."""
    name = re.sub(r"[^\w.-]+", "_", model.rstrip("/").rsplit("/", 1)[-1]) or "model"
    part = "" if plan.limit is None else f"-first-{plan.limit}"
    return Path("florence-jax-evaluation") / name / f"{plan.benchmark}-{plan.split}{part}"
