"""`python -m train.shapes.pretrain_vision DIR`: pretrain a small model's image encoder.

The published models' image encoder had learnt from other pictures before Florence-2's training
began. This does the same for a model of the synthetic world: from the last map's every cell, one
linear layer says what lies at the points of that cell (`points_of`: kind, colour, size,
texture, letter, and how far the box's edges are). The layer is thrown away. DIR then holds a
checkpoint, otherwise random, to train from:

    python -m train.shapes.pretrain_vision runs/shapes_tower
    florence-jax train --config train/recipes/shapes.py --model.start runs/shapes_tower \
        --model.architecture None --model.no-from-scratch
"""

from __future__ import annotations

import functools
import string
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from florence_jax.checkpoint import save_checkpoint
from florence_jax.checkpoint.param_tree import unflatten
from florence_jax.runtime.compilation_cache import use_compilation_cache
from florence_jax.runtime.program import run_program
from florence_jax.runtime.program_parser import ProgramParser
from florence_jax.runtime.terminal_bar import terminal_bar
from florence_jax.training.config import TrainConfig
from florence_jax.training.config_loader import load_config
from florence_jax.training.prepare import build_training
from florence_jax.training.pretrained import load_parameters, prepare_pretrained, read_pretrained
from florence_jax.training.state import Flat
from florence_jax.training.step import LossFn
from train.shapes.ground_truth import things_seen
from train.shapes.lexicon import BACKGROUNDS, COLOURS, KINDS, SIZES, TEXTURES, WORD
from train.shapes.outlines import turned
from train.shapes.render import FINE, draw, owners
from train.shapes.scene import Scene, Shape, Word, letter_edges
from train.shapes.source import ShapesConfig
from train.shapes.world import ShapesWorld

# What is asked of a point, and the answers. The first stands for "none here"; backgrounds are
# colours too, so that they are not nothing.
CLASSES: dict[str, tuple[str, ...]] = {
    "kind": ("", WORD, *KINDS),
    "colour": ("", *COLOURS, *BACKGROUNDS),
    "size": ("", *SIZES),
    "texture": ("", *TEXTURES),
    "letter": ("", *string.ascii_uppercase),
}

_RECIPE = Path("train/recipes/shapes.py")
_TOWER = "vision_tower/"
_KERNEL, _BIAS = "points/kernel", "points/bias"
_ANSWERS = sum(len(answers) for answers in CLASSES.values())
# Nine tenths of all points are background.
_BACKGROUND_WEIGHT = 0.1
# Edges are read in fifths of the side, and an error of a quarter of it costs as much as a nat.
_EDGE_UNIT, _EDGE_WEIGHT = 0.2, 4.0
_EPSILON = 1e-5


class Points(NamedTuple):
    """Labels of points at the middles of N x N equal cells.

    Attributes:
        classes: int32[N, N, 5], numbers of `CLASSES`.
        edges: float32[N, N, 4], from the point to x0, y0, x1 and y1 of its thing's box, as
            fractions of the side; NaN where no listed thing is.
    """

    classes: np.ndarray
    edges: np.ndarray


class PointBatch(NamedTuple):
    """uint8[B, H, W, 3] images, and the labels of their points: `points_of` with a batch axis."""

    images: Any
    classes: Any
    edges: Any


@dataclass(frozen=True)
class PointLoss:
    """The mean loss of the linear layer over all points.

    Attributes:
        objective: The run's loss function, with its model and how it normalises pixels.
        others: the parameters that stay.
        points: Number of points along a side of one cell of the last map.
    """

    objective: LossFn
    others: Flat
    points: int

    def first_layer(self, key: jax.Array) -> Flat:
        width = self.objective.model.config.vision.embed_dims[-1]
        outputs = self.points**2 * (_ANSWERS + 4)
        kernel = 0.02 * jax.random.normal(key, (width, outputs))
        return {_KERNEL: kernel, _BIAS: jnp.zeros(outputs)}

    def __call__(self, params: Flat, batch: PointBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss, and for each of `CLASSES` the share of right answers where there is one."""
        answered = self._read(params, batch.images)
        thing = batch.classes[..., 0] > 0
        weight = jnp.where(thing, 1.0, _BACKGROUND_WEIGHT)
        loss, right, first = jnp.zeros(()), {}, 0
        for number, (name, answers) in enumerate(CLASSES.items()):
            logits, wanted = answered[..., first : first + len(answers)], batch.classes[..., number]
            first += len(answers)
            nll = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
            loss += (weight * nll).sum() / weight.sum()
            there = thing & (wanted > 0)
            hit = there & (logits.argmax(-1) == wanted)
            right[name] = hit.sum() / jnp.maximum(there.sum(), 1)
        known = ~jnp.isnan(batch.edges)
        off = jnp.where(known, _EDGE_UNIT * answered[..., first:] - jnp.nan_to_num(batch.edges), 0)
        right["edges"] = jnp.abs(off).sum() / jnp.maximum(known.sum(), 1)
        return loss + _EDGE_WEIGHT * right["edges"], right

    def _read(self, params: Flat, images: jax.Array) -> jax.Array:
        """The linear layer's output for each point, float32[B, N, N, answers and edges]."""
        tower = {path: leaf for path, leaf in params.items() if path.startswith(_TOWER)}
        module = self.objective.bind({**self.others, **tower})
        cells = module.vision_tower(self.objective.pixels(images))
        cells -= cells.mean(-1, keepdims=True)
        cells *= jax.lax.rsqrt(jnp.square(cells).mean(-1, keepdims=True) + _EPSILON)
        batch, rows, columns, _ = cells.shape
        said = cells @ params[_KERNEL] + params[_BIAS]
        said = said.reshape(batch, rows, columns, self.points, self.points, _ANSWERS + 4)
        said = said.transpose(0, 1, 3, 2, 4, 5)
        return said.reshape(batch, rows * self.points, columns * self.points, -1)


def pretrained(
    config: TrainConfig, files: Path, *, steps: int, learning_rate: float, points: int = 3
) -> tuple[Flat, dict[str, float]]:
    """The recipe's first parameters with a trained image encoder, and its last measurements.

    Args:
        config: sizes, batch size, seed, and the scenes of its first source.
        files: a directory for the processor's files.
        learning_rate: Peak rate, after a twentieth of the steps; the last rate is a tenth of it.

    Raises:
        ValueError: no steps, or a recipe that is not of the synthetic world.
    """
    if steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}")
    start = prepare_pretrained(config, files)
    rows, columns = start.config.vision.grid(*start.image.size)
    if rows != columns:
        raise ValueError(f"the scenes are square and the map is not: {rows} x {columns}")
    batches = _batches(config, rows * points)
    params = load_parameters(config, start)
    objective = build_training(config, start).objective
    tower = {path: leaf for path, leaf in params.items() if path.startswith(_TOWER)}
    loss = PointLoss(
        objective, {path: leaf for path, leaf in params.items() if path not in tower}, points
    )
    key = jax.random.fold_in(jax.random.key(config.seed), 3)
    trained = {**tower, **loss.first_layer(key)}
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, steps // 20, steps, 0.1 * learning_rate
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01)
    )

    @jax.jit
    def update(params: Flat, state: optax.OptState, batch: PointBatch) -> tuple:
        with objective.model.precision_scope():
            gradient, seen = jax.grad(loss, has_aux=True)(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, seen

    state = optimizer.init(trained)
    shown = {}
    for step in (bar := terminal_bar(range(steps), unit="step", shown=True)):
        trained, state, seen = update(trained, state, next(batches))
        if step % 50 == 49 or step + 1 == steps:
            shown = {name: float(value) for name, value in seen.items()}
            bar.set_postfix({name: f"{value:.2f}" for name, value in shown.items()})
    return {path: trained.get(path, leaf) for path, leaf in params.items()}, shown


def _batches(config: TrainConfig, count: int) -> Iterator[PointBatch]:
    source = config.data.train[0]
    if not isinstance(source, ShapesConfig):
        raise ValueError(f"the recipe's first source must be a ShapesConfig, got {source.kind}")
    scene = source.scene
    if config.data.image_size != (scene.side, scene.side):
        raise ValueError(
            "the recipe's scenes must be drawn at the size that is trained at: they have "
            f"{scene.side} px, and data.image_size={config.data.image_size}"
        )
    world = ShapesWorld(config=scene, seed=config.seed)

    def example(index: int) -> PointBatch:
        drawn = world.scene(index)
        return PointBatch(np.asarray(draw(drawn)), *points_of(drawn, count))

    options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4 * config.batch_size)
    numbers = grain.MapDataset.range(2**31).map(example)
    return iter(numbers.to_iter_dataset(options).batch(config.batch_size))


def points_of(scene: Scene, count: int) -> Points:
    """The labels of `count` x `count` points. What is seen at a point owns it."""
    side = scene.config.side * FINE
    middles = (np.arange(count) + 0.5) / count
    pixels = (middles * side).astype(int)
    owner = owners(scene)[np.ix_(pixels, pixels)]
    sources = (*scene.shapes, *scene.words)
    known = np.array([_numbers({"colour": scene.background}), *map(_named, sources)])
    classes = known[owner]
    x, y = np.meshgrid(middles, middles)
    for number, word in enumerate(sources, start=1):
        here = owner == number
        if isinstance(word, Word) and here.any():
            points = np.stack([x[here], y[here]], axis=1)
            classes[here, -1] = [CLASSES["letter"].index(c) for c in _letters_at(word, points)]
    boxes = np.full((len(sources) + 1, 4), np.nan)
    for thing in things_seen(scene):
        boxes[thing.number + 1] = np.array(thing.box) / thing.side
    edges = boxes[owner] - np.stack([x, y, x, y], axis=-1)
    return Points(classes.astype(np.int32), edges.astype(np.float32))


def _named(source: Shape | Word) -> list[int]:
    if isinstance(source, Word):
        return _numbers({"kind": WORD})
    names = ("kind", "colour", "size", "texture")
    return _numbers({name: getattr(source, name) for name in names})


def _numbers(named: dict[str, str]) -> list[int]:
    return [answers.index(named.get(name, "")) for name, answers in CLASSES.items()]


def _letters_at(word: Word, points: np.ndarray) -> list[str]:
    """The letter whose part of the word's rectangle each point float64[P, 2] lies in."""
    upright = turned(points - word.centre, -word.tilt)
    along = upright[:, 0] + word.extent[0] / 2
    ends = letter_edges(word.text)[1:-1] * word.height
    return [word.text[place] for place in np.searchsorted(ends, along).tolist()]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_program("error", functools.partial(_run, arguments), failed=1)


def _run(arguments: list[str] | None) -> int:
    parser = ProgramParser(
        prog="python -m train.shapes.pretrain_vision",
        description=__doc__,
        allow_abbrev=False,
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="is made, or replaced")
    parser.add_argument(
        "--config",
        type=Path,
        default=_RECIPE,
        help="recipe; other flags replace its settings, as in florence-jax train (%(default)s)",
    )
    parser.add_argument("--steps", type=int, default=2_500, help="(%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="(%(default)s)")
    options, flags = parser.parse_known_args(arguments)
    config = load_config(options.config, flags)
    use_compilation_cache()
    # Where nothing can be written, that is said before the steps and not after them.
    options.directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="florence-tower-") as folder:
        files = Path(folder) / "processor"
        params, shown = pretrained(
            config, files, steps=options.steps, learning_rate=options.learning_rate
        )
        _save(options.directory, params, files)
    right = ", ".join(f"{name} {value:.2f}" for name, value in shown.items())
    print(f"{options.directory}: right at the last step: {right} (edges: mean error)")
    return 0


def _save(directory: Path, params: Mapping[str, jax.Array], files: Path) -> None:
    arrays = {path: np.asarray(leaf) for path, leaf in params.items()}
    save_checkpoint(
        directory, read_pretrained(files).config, unflatten(arrays), files=files, overwrite=True
    )


if __name__ == "__main__":
    sys.exit(main())
