"""Lower the program that `florence-jax train` or `predict` runs, for devices that are absent."""

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from florence_jax.checkpoint.param_tree import param_shapes, unflatten
from florence_jax.generation import GenerationConfig
from florence_jax.generation.generate import generate_jit
from florence_jax.generation.inputs import prepare_inputs
from florence_jax.model import Model
from florence_jax.processing import ImageConfig, demo_tokenizer
from florence_jax.sharding import (
    ParamSharding,
    batch_parts,
    batch_sharding,
    load_rules,
    make_layout,
    make_mesh,
    use_mesh,
)
from florence_jax.training.cached_features.vision_tower import origin_of
from florence_jax.training.config import TrainConfig
from florence_jax.training.config_loader import load_config
from florence_jax.training.metrics.flops import update_flops
from florence_jax.training.prepare import TrainSetup, build_training
from florence_jax.training.pretrained import PretrainedFiles
from florence_jax.training.state import Batch
from train.plan.bounds import PAPER_SAMPLES, generation_flops
from train.plan.request import PlanRequest
from train.plan.topology import load_devices


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A lowered program, and the sizes of its arguments.

    Attributes:
        lowered: jax's.
        parameters, optimizer, frozen, inputs: bytes on the fullest device.
        flops: FLOPs of one run, all devices together.
        turns: how often the generation loops turn, for the longest answers.
        paper_flops: FLOPs for one sample at the paper's image sizes.
        notes: Dimensions that the mesh cannot divide as the rules ask.
    """

    lowered: jax.stages.Lowered
    parameters: int
    inputs: int
    optimizer: int = 0
    frozen: int = 0
    flops: float
    paper_flops: dict[int, float]
    notes: tuple[str, ...]
    turns: tuple[int, ...] = ()


def lower(request: PlanRequest) -> Lowered:
    """Trace the program for the request's machine.

    Raises:
        CompilerMissing: the compiler of the machine's platform is not installed.
        ValueError: settings, rules or a mesh that do not fit, or cached features of a tower that
            trains.
    """
    mesh = make_mesh(request.mesh, load_devices(request.machine))
    parts = batch_parts(mesh)
    if (request.global_batch // request.accumulation) % parts:
        raise ValueError(
            f"{request.global_batch // request.accumulation} rows at a time cannot be divided by "
            f"the {parts} parts of mesh {request.mesh}"
        )
    return (_training_step if request.program == "train" else _generation)(request, mesh)


def _training_step(request: PlanRequest, mesh: Mesh) -> Lowered:
    config = training_config(request)
    side = (request.image_size, request.image_size)
    start = PretrainedFiles(
        config=request.sizes,
        files=Path(),
        tokenizer=demo_tokenizer(),
        image=ImageConfig(size=side),
    )
    training = build_training(config, start, mesh)
    state = training.padded_state()
    micro, divided = request.accumulation, batch_sharding(mesh, axis=1)
    pictures = request.global_batch // micro
    questions = max((source.questions for source in config.data.train), default=1)

    def array(rows: int, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((micro, rows, *shape), dtype, sharding=divided)

    images = array(pictures, (*side, 3), jnp.uint8)
    if config.data.cached_features is not None:
        # No weights are hashed: the tower is not run.
        features = origin_of(training, {})
        images = array(pictures, features.shape, features.dtype)
    batch = Batch(
        images=images,
        input_ids=array(pictures * questions, (request.prompt_length,), jnp.int32),
        labels=array(pictures * questions, (request.target_length,), jnp.int32),
    )
    with use_mesh(mesh):
        lowered = jax.jit(training.padded_step, donate_argnums=0).lower(state, batch)
    return Lowered(
        lowered=lowered,
        parameters=_bytes(state.trainable),
        optimizer=_bytes((state.opt_state, state.ema)),
        frozen=_bytes(state.frozen),
        inputs=_bytes(batch),
        flops=_flops(request, training, request.global_batch, request.image_size, questions),
        paper_flops={side: _flops(request, training, 1, side) for side in PAPER_SAMPLES},
        notes=_notes(training.placement.layout),
    )


def training_config(request: PlanRequest) -> TrainConfig:
    """The run's settings: those of its recipe with those of the command line on top."""
    side = str(request.image_size)
    flags = [
        *("--directory", "plan", "--model.start", "", "--model.architecture", request.model),
        *("--model.processor", "bytes", "--model.dtype", request.dtype),
        *("--data.image-size", side, side, "--batch-size", str(request.global_batch)),
        *("--accumulation", str(request.accumulation)),
        *("--mesh", request.mesh, "--rules", request.rules),
    ]
    if request.remat:
        flags += ["--model.remat", request.remat]
    if not request.config:
        flags += ["--steps", "1000000", "--data.train", '[{"kind": "jsonl", "path": "none"}]']
    config = load_config(request.config or None, [*flags, *request.settings])
    # The program does not depend on them, and nobody has the data that epochs are counted by.
    return config if config.steps else dataclasses.replace(config, steps=1_000_000, epochs=None)


def _generation(request: PlanRequest, mesh: Mesh) -> Lowered:
    layout = make_layout(load_rules(request.rules), param_shapes(request.sizes), mesh)
    model = Model(config=request.sizes, dtype=request.dtype, layout=layout)
    dtype = jnp.dtype(request.dtype)
    leaves = {
        path: jax.ShapeDtypeStruct(layout.shape(path), dtype, sharding=layout.sharding(path))
        for path in layout.shapes
    }
    params = unflatten(leaves)
    rows, side = request.global_batch, request.image_size
    divided = batch_sharding(mesh)
    # Three tokens that are no padding; the program depends on their number alone.
    ids = np.full((rows, request.prompt_length), 3, np.int32)
    prepared = prepare_inputs(
        model,
        params,
        pixel_values=jax.ShapeDtypeStruct((rows, side, side, 3), dtype, sharding=divided),
        input_ids=ids,
        config=GenerationConfig(
            num_beams=request.num_beams,
            no_repeat_ngram_size=3,
            max_new_tokens=request.target_length,
        ),
    )
    words = [
        jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=divided)
        for array in (prepared.input_ids, prepared.attention_mask)
    ]
    prepared = prepared._replace(input_ids=words[0], attention_mask=words[1])
    with use_mesh(mesh):
        lowered = generate_jit.lower(*prepared)
    return Lowered(
        lowered=lowered,
        parameters=_bytes(params),
        inputs=_bytes((prepared.image, words)),
        flops=generation_flops(request, rows, side),
        paper_flops={},
        turns=tuple(last - first for first, last in pairwise((0, *prepared.plan.buffers))),
        notes=_notes(layout),
    )


def _flops(
    request: PlanRequest, training: TrainSetup, pictures: int, side: int, questions: int = 1
) -> float:
    return update_flops(
        request.sizes,
        training.param_groups,
        rows=pictures * questions,
        questions=questions,
        image_size=(side, side),
        prompt=request.prompt_length,
        labels=request.target_length,
        cached_features=training.config.data.cached_features is not None,
    )


def _notes(layout: ParamSharding) -> tuple[str, ...]:
    return tuple(str(one) for one in layout.replicated)


def _bytes(tree: Any) -> int:
    """Bytes of a tree of abstract arrays on one device."""
    return sum(
        leaf.dtype.itemsize * int(np.prod(leaf.sharding.shard_shape(leaf.shape)))
        for leaf in jax.tree.leaves(tree)
    )
