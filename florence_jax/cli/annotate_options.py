"""The options of `florence-jax annotate`: the parser, and what it gives the command."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence_jax.annotation.schema import LEVELS
from florence_jax.annotation.settings import AnnotateSettings, FilterSettings
from florence_jax.batch.blocks import RunOptions
from florence_jax.cli.options import (
    DECODING,
    MODEL,
    PROCESSES,
    DecodingOptions,
    ModelOptions,
    add_shared,
    decoding_from,
    options_from,
    run_options,
)

if TYPE_CHECKING:
    from florence_jax.annotation.merge import Captions, Fusion
    from florence_jax.annotation.outputs import Export

# The features of a block's images stay on the device: 1.2 MB each for base in bfloat16.
_MAX_BLOCK_SIZE = 128


@dataclass(frozen=True, kw_only=True)
class AnnotateOptions:
    """The checked options of `florence-jax annotate`; help texts explain those not listed here.

    Attributes:
        settings: what is asked of an image, and what the filters keep.
        noun_phrases: a spaCy model, "rules" or "auto".
        run: how the run is divided.
        constrained: allow only answers that parse completely.
    """

    images: tuple[str, ...]
    output: Path
    image_root: Path | None
    model: ModelOptions
    decoding: DecodingOptions
    settings: AnnotateSettings
    noun_phrases: str
    run: RunOptions
    constrained: bool
    export: tuple[Export, ...]
    gallery: int
    merge: Sequence[Path] | None
    fusion: Fusion
    captions: Captions
    dry_run: bool
    quiet: bool


def annotate_options(arguments: argparse.Namespace) -> AnnotateOptions:
    """The options of parsed arguments.

    Raises:
        ValueError: names options that do not go together, and the remedy.
    """
    return options_from(
        AnnotateOptions,
        arguments,
        images=tuple(arguments.images),
        model=options_from(ModelOptions, arguments),
        decoding=decoding_from(arguments),
        settings=annotate_settings(arguments),
        noun_phrases=arguments.analyser,
        run=run_options(arguments, row_format="jsonl", max_block_size=_MAX_BLOCK_SIZE),
        constrained=not arguments.unconstrained,
        export=tuple(arguments.export),
    )


def add_options(annotate: argparse.ArgumentParser) -> None:
    """Add every option of the command to its parser."""
    annotate.add_argument(
        "images", nargs="*", metavar="IMAGE", help="image file, directory, or .txt list of paths"
    )
    annotate.add_argument("--output", type=Path, required=True, metavar="DIR", help="see below")
    annotate.add_argument(
        "--image-root",
        type=Path,
        metavar="DIR",
        help="images are named by their path below it (default: the deepest that holds them all)",
    )
    # The filters need the confidences that the references do not give.
    add_shared(annotate, *MODEL)
    asked = annotate.add_argument_group("what is asked")
    asked.add_argument(
        "--only",
        action="append",
        choices=(*LEVELS, "regions", "ocr"),
        help="only this; repeat it for several (default: everything)",
    )
    asked.add_argument(
        "--no-grounding", action="store_true", help="do not look for the phrases of captions"
    )
    asked.add_argument(
        "--no-completion",
        action="store_true",
        help="do not ask for labels and descriptions that boxes lack, nor for a second label where "
        "the two contradict",
    )
    asked.add_argument(
        "--proposals",
        action="store_true",
        help="ask for region proposals too, and what those are that neither list of objects has",
    )
    asked.add_argument(
        "--polygons",
        choices=("none", "phrases", "all"),
        default="none",
        help="outline the boxes of phrases, or all: one prompt a box (default: %(default)s)",
    )
    asked.add_argument(
        "--threshold",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a threshold of the filters, below",
    )
    asked.add_argument(
        "--analyser",
        default="auto",
        metavar="NAME",
        help="finds noun phrases: a spaCy model, or 'rules' without one (default: an installed "
        "spaCy model, else rules)",
    )
    add_shared(annotate, *DECODING)
    annotate.add_argument(
        "--unconstrained",
        action="store_true",
        help="also allow answers that do not parse completely (faster to start)",
    )
    add_shared(annotate, "--batch-size", "--block-size", *PROCESSES, "--extend")
    annotate.add_argument(
        "--export",
        action="append",
        default=[],
        choices=("coco", "rows"),
        help="also write this; repeat it for both",
    )
    annotate.add_argument(
        "--gallery", type=int, default=0, metavar="N", help="a page of the first N images"
    )
    annotate.add_argument("--dry-run", action="store_true", help="say what would be done")
    merging = annotate.add_argument_group("merging")
    merging.add_argument(
        "--merge", nargs="+", type=Path, metavar="DIR", help="annotations to fuse, of any models"
    )
    merging.add_argument(
        "--fusion",
        choices=("nms", "average"),
        default="nms",
        help="of boxes with one label: the most certain one, or weighted boxes fusion (default: "
        "%(default)s)",
    )
    merging.add_argument(
        "--captions",
        choices=("best", "all"),
        default="best",
        help="of each level: the one with the best score, or all (default: %(default)s)",
    )
    loop = annotate.add_argument_group("refining (needs the extra `train`)")
    loop.add_argument(
        "--refine",
        type=Path,
        metavar="RECIPE",
        help="fine-tune by this recipe, on the annotations in place of the recipe's own data",
    )
    loop.add_argument("--rounds", type=int, default=1, help="fine-tunes (default: %(default)s)")
    loop.add_argument(
        "--checkout",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="run in this directory, whose modules the recipe may import (default: this one)",
    )
    loop.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="SOURCE",
        help='train on this too: JSON such as \'{"kind": "jsonl", "path": "/data/by_hand.jsonl"}\'',
    )
    loop.add_argument(
        "--questions",
        type=int,
        default=1,
        metavar="N",
        help="learn up to N answers of one image together, as the image encoder then runs once for "
        "them (default: %(default)s)",
    )
    loop.add_argument(
        "--set",
        action="append",
        default=[],
        dest="words",
        metavar="NAME=VALUE",
        help="a setting of the fine-tune, such as optimizer.learning-rate=1e-4; repeat it for "
        "several",
    )
    annotate.add_argument("--quiet", action="store_true", help="no progress bar, no table")


def annotate_settings(options: argparse.Namespace) -> AnnotateSettings:
    """The settings that the options ask for.

    Raises:
        ValueError: a threshold is unknown or out of range.
    """
    wanted = set(options.only or (*LEVELS, "regions", "ocr"))
    filters = dict(map(_threshold, options.threshold))
    return AnnotateSettings(
        levels=tuple(level for level in LEVELS if level in wanted),
        regions="regions" in wanted,
        proposals=options.proposals,
        ocr="ocr" in wanted,
        ground=not options.no_grounding,
        complete=not options.no_completion,
        polygons=options.polygons,
        filters=FilterSettings(**filters),
    )


def annotate_arguments(options: argparse.Namespace, model: str, output: Path) -> list[str]:
    """A command line with the same options, another model and another directory."""
    arguments = ["annotate", *(os.path.abspath(image) for image in options.images)]
    arguments += ["--model", model, "--output", str(output)]
    # One process, whatever a launcher's environment says about the loop.
    arguments += ["--process-index", "0", "--process-count", "1"]
    for name in (
        *("analyser", "polygons", "batch_size", "block_size", "workers", "gallery", "image_root"),
        *("dtype", "matmul_precision", "quantize", "beams", "max_new_tokens", "mesh", "rules"),
    ):
        value = getattr(options, name)
        # Rules are a preset's name or a file; the loop's processes run elsewhere.
        if isinstance(value, Path) or (name == "rules" and value and Path(value).is_file()):
            value = os.path.abspath(value)
        if value is not None:
            arguments += [f"--{name.replace('_', '-')}", str(value)]
    for name in ("only", "threshold", "export"):
        for value in getattr(options, name) or ():
            arguments += [f"--{name}", value]
    for name in ("no_grounding", "no_completion", "proposals", "unconstrained", "quiet"):
        if getattr(options, name):
            arguments.append(f"--{name.replace('_', '-')}")
    return arguments


def _threshold(text: str) -> tuple[str, Any]:
    """NAME=VALUE as a field of `FilterSettings` and its value."""
    name, _, value = text.partition("=")
    defaults = dataclasses.asdict(FilterSettings())
    if name not in defaults:
        raise ValueError(f"no threshold {name!r}; there are {', '.join(defaults)}")
    default = defaults[name]
    try:
        if isinstance(default, tuple):
            parts = [type(default[0])(part) for part in value.split(",")]
            # One number stands for every level.
            return name, tuple(parts * len(default) if len(parts) == 1 else parts)
        return name, type(default)(value)
    except ValueError:
        raise ValueError(
            f"--threshold {text}: expected a value like {name}={_written(default)}"
        ) from None


def thresholds() -> str:
    """Every threshold with its default and meaning, from the settings' docstring."""
    section = inspect.cleandoc(FilterSettings.__doc__ or "").partition("Attributes:\n")[2]
    lines = []
    for line in section.splitlines():
        name, _, meaning = line.strip().partition(": ")
        if line.startswith("    ") and not line.startswith("     "):
            default = _written(getattr(FilterSettings, name))
            lines += [f"  {name}={default}", f"      {meaning}"]
        else:
            lines[-1] += f" {line.strip()}"
    return "\n".join(lines).replace("%", "%%") + "\n"


def _written(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, Sequence) else str(value)
