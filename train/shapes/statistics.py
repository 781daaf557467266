"""What a split is like: things per scene, and tokens per prompt and target of each task."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from florence_jax.processing import build_prompt
from train.shapes.ground_truth import things_seen
from train.shapes.relations import holds
from train.shapes.scene import Shape
from train.shapes.tokenizer import world_tokenizer
from train.shapes.world import ShapesWorld


def statistics(world: ShapesWorld, count: int) -> str:
    """A report on the first `count` scenes, as Markdown."""
    return f"{_scenes(world, count)}\n\n{_tokens(world, count)}"


def _scenes(world: ShapesWorld, count: int) -> str:
    things, shapes, words, inside, hidden = [], [], [], 0, 0
    for index in range(count):
        scene = world.scene(index)
        seen = things_seen(scene)
        listed = [thing for thing in seen if isinstance(thing.source, Shape)]
        things.append(len(seen))
        shapes.append(len(listed))
        words.append(len(seen) - len(listed))
        inside += any(holds(a, "inside", b) for a in listed for b in listed if a is not b)
        hidden += len(scene.shapes) - len(listed)
    rows = [("things", things), ("shapes", shapes), ("words", words)]
    lines = [f"{name} {np.mean(values):.2f} (at most {max(values)})" for name, values in rows]
    return (
        f"{count} scenes of {world.split}: {', '.join(lines)} each; something inside something in "
        f"{inside / count:.0%}; {hidden} shapes too hidden to be listed."
    )


def _tokens(world: ShapesWorld, count: int) -> str:
    """Lengths with `<s>` and `</s>`."""
    tokenizer = world_tokenizer()
    prompts, targets = defaultdict(list), defaultdict(list)
    for index in range(count):
        for question in world.questions(index):
            prompt, target = tokenizer.encode([build_prompt(question.prefix), question.suffix])
            prompts[question.task].append(len(prompt))
            targets[question.task].append(len(target))
    lines = [
        "| task | prompt tokens, mean / max | target tokens, mean / max |",
        "| --- | --- | --- |",
    ]
    for task in prompts:
        cells = (f"{np.mean(side[task]):.1f} / {max(side[task])}" for side in (prompts, targets))
        lines.append(f"| `{task}` | {' | '.join(cells)} |")
    return "\n".join(lines)
