"""A checkpoint's answers to scenes of the world, and a report on them.

    python -m train.shapes.evaluate CHECKPOINT --split held-out --scenes 500

prints `judge`'s figure of each task as a table; `--output` writes the figures as JSON.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from florence_jax.inference.pipeline import Florence2Pipeline
from florence_jax.processing import TASKS
from florence_jax.runtime.atomic_file import atomic_write, check_writable
from florence_jax.runtime.program import run_program
from florence_jax.runtime.program_parser import ProgramParser
from florence_jax.runtime.terminal_bar import terminal_bar
from florence_jax.training.metrics.judge import Answered, Score
from train.shapes.config import SPLITS, SceneConfig
from train.shapes.judge import judge
from train.shapes.world import ShapesWorld


def answers(
    pipe: Florence2Pipeline,
    world: ShapesWorld,
    scenes: int,
    tasks: Sequence[str] = tuple(TASKS),
    *,
    max_new_tokens: int = 120,
    batch_size: int = 32,
) -> Iterator[Answered]:
    """Greedy answers to every task of the world's first scenes, with the boxes' confidences."""
    size = (world.config.side, world.config.side)
    for first in range(0, scenes, batch_size):
        asked = [
            example
            for index in range(first, min(first + batch_size, scenes))
            for example in world.examples(index, tasks)
        ]
        results = pipe(
            [example.image for example in asked],
            [example.prefix for example in asked],
            num_beams=1,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
        )
        for example, answer in zip(asked, results, strict=True):
            yield Answered(
                prefix=example.prefix, labels=example.suffix, answer=answer, image_size=size
            )


def table(scores: dict[str, Score]) -> str:
    """The scores as a Markdown table."""
    lines = ["| task | metric | value | answers |", "| --- | --- | --- | --- |"]
    for task, score in scores.items():
        lines.append(f"| `{task}` | {score.metric} | {score.value:.3f} | {score.count} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_program("error", functools.partial(_run, arguments), failed=1)


def _run(arguments: list[str] | None) -> int:
    parser = ProgramParser(
        prog="python -m train.shapes.evaluate",
        description=__doc__,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--split", choices=SPLITS, default="held-out", help="(%(default)s)")
    parser.add_argument("--scenes", type=int, default=200, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the world (%(default)s)")
    parser.add_argument("--task", action="append", choices=list(TASKS), help="default: all 15")
    parser.add_argument("--output", type=Path, metavar="FILE", help="figures as JSON")
    options = parser.parse_args(arguments)
    if options.output:
        check_writable(options.output.parent)
    pipe = Florence2Pipeline.from_pretrained(options.checkpoint)
    config = SceneConfig(side=pipe.image_config.size[0])
    world = ShapesWorld(config=config, seed=options.seed, split=options.split)
    tasks = tuple(options.task or TASKS)
    found = answers(pipe, world, options.scenes, tasks)
    scores = judge(
        terminal_bar(found, total=options.scenes * len(tasks), unit="answer", shown=True)
    )
    print(table(scores))
    if options.output:
        figures = {
            task: {score.metric: round(score.value, 4), **score.others}
            for task, score in scores.items()
        }
        atomic_write(options.output, json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
