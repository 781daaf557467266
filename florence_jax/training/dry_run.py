"""`--dry-run`: print the settings, sizes and first batch of a run, without loading weights."""

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from florence_jax.processing import TASKS, parse
from florence_jax.results.compare_grid import enlarged, save_side_by_side
from florence_jax.training.cached_features.vision_tower import origin_of
from florence_jax.training.config import TrainConfig
from florence_jax.training.config_loader import to_tree
from florence_jax.training.metrics.flops import update_flops
from florence_jax.training.prepare import TrainSetup, prepare
from florence_jax.training.pretrained import PretrainedFiles
from florence_jax.training.run_config import RunConfig
from florence_jax.training.state import Batch

_MOST_DRAWN = 8


def dry_run(config: RunConfig, directory: Path) -> Iterator[str]:
    """Lines to print; the first batch's images go, with their labels drawn, to `directory`."""
    yield json.dumps(to_tree(config), indent=1)
    # On this machine's devices, not those that the run divides its parameters over.
    config = dataclasses.replace(config, mesh="")
    if not isinstance(config, TrainConfig):
        from florence_jax.training.images.dry_run import first_batch
        from florence_jax.training.images.run import prepare_images

        run = prepare_images(config, directory / "processor")
        yield from _sizes(run.setup)
        yield from (f"note: {note}" for note in run.notes)
        yield from first_batch(run, directory)
        return
    prepared = prepare(config, directory / "processor")
    pretrained, setup = prepared.pretrained, prepared.setup
    yield from _sizes(setup)
    # Pixels even where features are cached, so that there are images to look at.
    loader = prepared.loader
    limits = f"{prepared.preprocessor.max_prompt} and {prepared.preprocessor.max_labels}"
    yield f"steps: {setup.steps:,}; texts of at most {limits} tokens"
    yield f"training data: {len(loader.sources)} sources"
    for name, source, weight in loader.sources:
        yield f"  {name}: {len(source):,} rows, weight {weight:g}"
    yield from (f"note: {note}" for note in prepared.data.notes)
    batch = loader.batch(0)
    if config.data.cached_features is not None:
        yield from _cached_features(setup, batch, prepared.data.rows)
    yield from _batch(batch, pretrained, directory)


def _sizes(setup: TrainSetup) -> Iterator[str]:
    abstract = setup.abstract_state()
    groups = {"trainable": abstract.trainable, "frozen": abstract.frozen}
    for name, leaves in groups.items():
        parts: dict[str, int] = {}
        for path, leaf in leaves.items():
            part = path.split("/")[0]
            parts[part] = parts.get(part, 0) + math.prod(leaf.shape)
        listed = ", ".join(f"{part} {count:,}" for part, count in parts.items())
        yield f"{name}: {sum(parts.values()):,} parameters ({listed})"
    held = {
        "parameters": (abstract.trainable, abstract.frozen),
        "optimizer state": abstract.opt_state,
        "moving average": abstract.ema,
        "gradients": abstract.trainable,
    }
    sizes = {name: _bytes(tree) for name, tree in held.items()}
    listed = ", ".join(f"{name} {size / 2**20:,.1f}" for name, size in sizes.items())
    yield f"memory in MiB, activations aside: {sum(sizes.values()) / 2**20:,.1f} ({listed})"


def _cached_features(setup: TrainSetup, batch: Batch, rows: int) -> Iterator[str]:
    # Without weights: only the shape and dtype are shown.
    origin = origin_of(setup, {})
    yield (
        f"cached features: {origin.dtype}{list(origin.shape)} an image, "
        f"{origin.nbytes / 1e6:,.2f} MB; {rows * origin.nbytes / 1e9:,.2f} GB for {rows:,} rows, "
        "less where rows share one"
    )
    images, prompts, labels = batch.images, batch.input_ids, batch.labels
    cached, computed = (
        update_flops(
            setup.objective.model.config,
            setup.param_groups,
            rows=labels.shape[0] * labels.shape[1],
            questions=labels.shape[1] // images.shape[1],
            image_size=setup.objective.image.size,
            prompt=prompts.shape[-1],
            labels=labels.shape[-1],
            cached_features=is_cached,
        )
        for is_cached in (True, False)
    )
    yield (
        f"an update: {cached / 1e12:,.3f} TFLOP in place of {computed / 1e12:,.3f} with the tower, "
        f"{computed / cached:.2f} times less"
    )


def _batch(batch: Batch, pretrained: PretrainedFiles, directory: Path) -> Iterator[str]:
    arrays = {name: getattr(batch, name) for name in ("images", "input_ids", "labels")}
    shapes = ", ".join(f"{name} {leaf.dtype}{list(leaf.shape)}" for name, leaf in arrays.items())
    yield f"first batch: {shapes}, {_bytes(arrays) / 2**20:,.1f} MiB"
    yield from (f"  unusable: {row}: {reason}" for row, reason in batch.problems)
    images = batch.images.reshape(-1, *batch.images.shape[2:])
    prompts, labels = (x.reshape(-1, x.shape[-1]) for x in (batch.input_ids, batch.labels))
    images = images.repeat(len(prompts) // len(images), axis=0)
    tokenizer = pretrained.tokenizer
    for number, (row, image, prompt, label) in enumerate(
        zip(batch.ids, images, prompts, labels, strict=True)
    ):
        question = tokenizer.decode(prompt[prompt != tokenizer.pad_id].tolist())
        text = tokenizer.decode(label[label >= 0].tolist())
        yield f"  {row}\n    prompt {question}\n    labels {text}"
        if number < _MOST_DRAWN:
            picture = enlarged(Image.fromarray(image))
            result = parse(text, _task(question), picture.size)
            path = directory / f"{number:04d}.png"
            save_side_by_side(path, picture, {question: result})
    yield f"drawn: {directory}"


def _task(question: str) -> str:
    """The task of a prompt's sentence; a batch no longer holds task tokens."""
    text = re.sub("</?s>", "", question)
    for token, task in TASKS.items():
        before, _, after = task.prompt.partition("{input}")
        if re.fullmatch(f"{re.escape(before)}.*{re.escape(after)}", text, re.DOTALL):
            return token
    return "text"


def _bytes(tree: object) -> int:
    return sum(
        math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
    )
