"""`florence-jax export`: write the programs of a checkpoint as StableHLO."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from florence_jax.cli.options import (
    DECODING,
    ModelOptions,
    add_shared,
    decoding_from,
    decoding_settings,
    load_checkpoint_pipeline,
    options_from,
)
from florence_jax.runtime.atomic_dir import check_destination
from florence_jax.runtime.program_parser import positive

_EXAMPLES = """\
examples:
  florence-jax export exported/ --batch-size 1 --max-new-tokens 256
  florence-jax export large/ --model microsoft/Florence-2-large \\
      --dtype bfloat16 --platform tpu
  florence-jax predict a.jpg --task "<OD>" --model exported/ \\
      --weights microsoft/Florence-2-base-ft
"""


def add_export(commands: Any) -> None:
    """Add the command to the parser's."""
    export = commands.add_parser(
        "export",
        description="Write what a pipeline compiles as StableHLO, for several platforms at once. "
        "`predict --model DIR` and florence_jax.load_exported(DIR) answer with it.",
        epilog=_EXAMPLES,
    )
    export.add_argument("output", type=Path, metavar="DIR", help="the directory to write")
    add_shared(export, "--model", "--revision", "--processor", "--compat", *DECODING)
    export.add_argument(
        "--platform",
        action="append",
        choices=("cpu", "cuda", "rocm", "tpu"),
        help="repeat it for several (default: cpu, cuda and tpu)",
    )
    export.add_argument(
        "--batch-size",
        type=positive,
        action="append",
        help="requests in one call; repeat it for several (default: 1, 2, 4 and 8)",
    )
    export.add_argument(
        "--image-size",
        type=_image_size,
        action="append",
        metavar="HEIGHTxWIDTH",
        help="in pixels; repeat it for several (default: the checkpoint's)",
    )
    export.add_argument(
        "--prompt",
        action="append",
        help="a prompt as requests will have it, of the greatest length; repeat it for shorter "
        "buckets (default: the 15 tasks without texts, which fit one of 16 tokens)",
    )
    export.add_argument(
        "--constrained", action="store_true", help="programs of constrained answers as well"
    )
    export.add_argument(
        "--include-weights", action="store_true", help="put the weights into DIR as well"
    )
    export.add_argument("--overwrite", action="store_true", help="replace an existing DIR")
    export.add_argument("--quiet", action="store_true", help="no progress bar, no summary")
    export.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    check_destination(arguments.output, overwrite=arguments.overwrite)
    decoding = decoding_from(arguments)
    pipeline = load_checkpoint_pipeline(
        options_from(ModelOptions, arguments), progress=not arguments.quiet
    )
    given = {
        "platforms": arguments.platform,
        "batch_sizes": arguments.batch_size,
        "image_sizes": arguments.image_size,
        "prompts": arguments.prompt,
    }
    pipeline.export(
        arguments.output,
        **{name: value for name, value in given.items() if value is not None},
        generation=decoding_settings(pipeline, decoding),
        constrained=arguments.constrained,
        include_weights=arguments.include_weights,
        overwrite=arguments.overwrite,
        progress=not arguments.quiet,
    )
    if not arguments.quiet:
        size = sum(file.stat().st_size for file in arguments.output.iterdir())
        print(f"{arguments.output}: {size / 1e6:.1f} MB", file=sys.stderr)
    return 0


def _image_size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, such as 768x768")
    return int(height), int(width)
