"""A demonstration that a wheel can ship: a trained checkpoint, scenes it never saw, and its card.

    python -m convert.to_torch RUN/export native --naming native
    python -m train.shapes.bundle native bundle

Figures on the card are of held-out scenes, `train.shapes.evaluate` with its defaults.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import sys
from pathlib import Path

import jax

from florence_jax.inference.pipeline import Florence2Pipeline
from florence_jax.runtime.atomic_dir import atomic_directory
from florence_jax.runtime.program import run_program
from florence_jax.runtime.program_parser import ProgramParser
from train.shapes.config import SceneConfig
from train.shapes.evaluate import answers, table
from train.shapes.judge import judge
from train.shapes.world import ShapesWorld, write_dataset

# What a wheel can carry without being noticed.
_MOST_BYTES = 16_000_000
_SCENES = "scenes"
_CARD = """# Florence-2 of shapes

A Florence-2 of {parameters:.1f} million parameters for the synthetic world of `train/shapes`:
coloured shapes and drawn words at {side} x {side} pixels, all 15 tasks. It knows nothing of
photographs; it shows what the library does with a model that has learnt something, offline.

{provenance}

## Held-out scenes

{count} scenes with combinations of colour, kind and size, and words, that no training scene has;
greedy answers. Metrics: `train/shapes/judge.py`.

{table}

Licence: MIT, as the library's. Weights, scenes and words were made by its own code.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_program("error", functools.partial(_run, arguments), failed=1)


def _run(arguments: list[str] | None) -> int:
    parser = ProgramParser(
        prog="python -m train.shapes.bundle",
        description=__doc__,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("bundle", type=Path, metavar="DIR")
    parser.add_argument(
        "--provenance", default="", help="recipe, seed, steps and hours: a sentence"
    )
    parser.add_argument("--judged", type=int, default=200, help="held-out scenes (%(default)s)")
    parser.add_argument("--shown", type=int, default=3, help="scenes of the demo (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace DIR, if it is a bundle")
    options = parser.parse_args(arguments)
    print(_bundle(options))
    return 0


def _bundle(options: argparse.Namespace) -> str:
    """Writes it; the table of its card."""
    weights = options.checkpoint / "model.safetensors"
    if not weights.is_file() or weights.stat().st_size > _MOST_BYTES:
        raise ValueError(
            f"{weights} must be a file of at most {_MOST_BYTES:,} bytes: write one with `python -m "
            "convert.to_torch RUN/export DIR --naming native --dtype bfloat16`"
        )
    pipe = Florence2Pipeline.from_pretrained(options.checkpoint)
    world = ShapesWorld(config=SceneConfig(side=pipe.image_config.size[0]), split="held-out")
    figures = table(judge(answers(pipe, world, options.judged)))
    card = _CARD.format(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(pipe.params)) / 1e6,
        side=world.config.side,
        provenance=options.provenance,
        count=options.judged,
        table=figures,
    )
    with atomic_directory(options.bundle, overwrite=options.overwrite) as folder:
        shutil.copytree(options.checkpoint, folder, dirs_exist_ok=True)
        # Scenes that the figures are not of.
        write_dataset(world, folder / _SCENES, options.shown, start=options.judged)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return figures


if __name__ == "__main__":
    sys.exit(main())
