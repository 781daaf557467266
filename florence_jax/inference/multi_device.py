"""Put a pipeline on several devices: weights divided on a mesh, or whole on each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from florence_jax.inference.base_pipeline import BasePipeline
from florence_jax.inference.load_sharded import (
    DEFAULT_RULES,
    MeshLike,
    RulesLike,
    make_param_sharding,
    to_mesh,
)
from florence_jax.inference.pipeline import Florence2Pipeline
from florence_jax.quantization import quantized_modules
from florence_jax.sharding import make_mesh


def shard_pipeline(
    pipeline: Florence2Pipeline, mesh: MeshLike, rules: RulesLike = DEFAULT_RULES
) -> Florence2Pipeline:
    """The pipeline with its parameters divided on a mesh.

    Raises:
        RuleError, ValueError: a mesh or rules that do not fit, or weights that are quantised.
    """
    if quantized_modules(pipeline.params):
        raise ValueError("quantized weights are kept on one device: leave out the mesh")
    layout = make_param_sharding(pipeline.model.config, mesh, rules)
    return dataclasses.replace(
        pipeline,
        model=dataclasses.replace(pipeline.model, layout=layout),
        params=to_mesh(pipeline.params, layout),
    )


def replicate_over_local_devices(
    pipeline: BasePipeline, devices: Sequence[Any] | None = None
) -> BasePipeline:
    """The pipeline with its parameters on each of this host's devices, if there are several.

    Exported programs stay on the one device that they were exported for, and a model that is on a
    mesh already on that.
    """
    devices = jax.local_devices() if devices is None else devices
    if len(devices) == 1 or not isinstance(pipeline, Florence2Pipeline):
        return pipeline
    if pipeline.model.mesh is not None:
        return pipeline
    mesh = make_mesh("data=-1", devices)
    params = jax.device_put(pipeline.params, NamedSharding(mesh, PartitionSpec()))
    return dataclasses.replace(pipeline, params=params, replicas=mesh)
