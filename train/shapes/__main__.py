"""`python -m train.shapes`: write data sets, a gallery, or the processor of the synthetic world."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from inspect import getdoc
from typing import Any, get_type_hints

from florence_jax.processing import TASKS
from florence_jax.runtime.program import run_program
from florence_jax.runtime.program_parser import ProgramParser
from train.shapes.config import SPLITS, SceneConfig
from train.shapes.image_sets import write_class_folders, write_mask_folders
from train.shapes.overview import save_gallery, statistics
from train.shapes.tokenizer import save_processor
from train.shapes.world import DIRECTORIES, ShapesWorld, write_dataset

_EPILOG = """
examples:
  python -m train.shapes --out data --split train --count 10000
  python -m train.shapes --out data --split held-out --count 500      # becomes data/test
  python -m train.shapes --gallery page.png --count 6 --task "<OD>" --task "<OCR_WITH_REGION>"
  python -m train.shapes --statistics --count 500 --set shapes=3,6 --set overlap=0.6
  python -m train.shapes --classes colours --count 2000 --set side=64 --set shapes=1,1
  python -m train.shapes --masks masks --split valid --count 200 --set side=64
  python -m train.shapes --processor checkpoint --set side=192 --image-tokens 37
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_program("error", functools.partial(_run, arguments), failed=1)


def _run(arguments: list[str] | None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    config = dataclasses.replace(SceneConfig(), **dict(map(_setting, options.set)))
    world = ShapesWorld(config=config, seed=options.seed, split=options.split)
    tasks = tuple(options.task or TASKS)
    if options.out:
        print(write_dataset(world, options.out, options.count, start=options.start, tasks=tasks))
    if options.classes:
        print(write_class_folders(world, options.classes, options.count, by=options.by))
    if options.masks:
        print(write_mask_folders(world, options.masks, options.count, by=options.by))
    if options.gallery:
        save_gallery(world, options.gallery, options.count, tasks=tasks)
        print(options.gallery)
    if options.statistics:
        print(statistics(world, options.count))
    if options.processor:
        side, tokens = config.side, options.image_tokens
        save_processor(options.processor, image_size=(side, side), image_tokens=tokens)
        print(options.processor)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = ProgramParser(
        prog="python -m train.shapes",
        description=__doc__,
        epilog=f"{_EPILOG}\n{getdoc(SceneConfig)}\n{_defaults()}",
    )
    made = parser.add_argument_group("what is made").add_mutually_exclusive_group(required=True)
    made.add_argument(
        "--out",
        metavar="DIR",
        help=f"a data set in DIR/{{{','.join(DIRECTORIES.values())}}}: annotations.jsonl and PNGs",
    )
    made.add_argument(
        "--classes",
        metavar="DIR",
        help="folders of images by their largest shape's colour, for train/recipes/classify.py",
    )
    made.add_argument(
        "--masks", metavar="DIR", help="images and masks, for train/recipes/segment.py"
    )
    made.add_argument("--gallery", metavar="PNG", help="one picture of scenes with their truth")
    made.add_argument("--statistics", action="store_true", help="things and tokens, as Markdown")
    made.add_argument("--processor", metavar="DIR", help="tokenizer and processor files")
    parser.add_argument(
        "--by",
        choices=("colour", "kind"),
        default="colour",
        help="of --classes, --masks (default: colour)",
    )
    parser.add_argument("--split", choices=SPLITS, default="train", help="default: train")
    parser.add_argument("--count", type=int, default=100, help="scenes (default: 100)")
    parser.add_argument("--start", type=int, default=0, help="first scene of --out (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--task", action="append", choices=tuple(TASKS), metavar="TASK", help="default: all 15"
    )
    parser.add_argument(
        "--image-tokens",
        type=int,
        default=50,
        metavar="N",
        help="image features of --processor, 1 + h * w (default: 50, of 224 px at a stride of 32)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a field of SceneConfig, below; two numbers as 2,4",
    )
    return parser


def _setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE as a field of `SceneConfig` and its value.

    Raises:
        ValueError: no such field, or a value of another type.
    """
    name, _, value = text.partition("=")
    kinds = get_type_hints(SceneConfig)
    if name not in kinds:
        raise ValueError(f"no setting {name!r}; there are {', '.join(kinds)}")
    kind = kinds[name]
    numbers = getattr(kind, "__args__", (kind,))
    parts = value.split(",")
    try:
        if len(parts) != len(numbers):
            raise ValueError
        values: tuple[Any, ...] = tuple(
            number(part) for number, part in zip(numbers, parts, strict=True)
        )
    except ValueError:
        expected = ",".join(number.__name__ for number in numbers)
        raise ValueError(f"{text!r}: expected {name}={expected}") from None
    return name, values[0] if len(values) == 1 else values


def _defaults() -> str:
    pairs = (f"{field.name}={field.default}" for field in dataclasses.fields(SceneConfig))
    return "Defaults: " + ", ".join(pairs)


if __name__ == "__main__":
    sys.exit(main())
