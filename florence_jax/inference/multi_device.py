"""Put a pipeline on several devices, the weights whole on each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from florence_jax.inference.base_pipeline import BasePipeline
from florence_jax.inference.pipeline import Florence2Pipeline
from florence_jax.sharding import make_mesh


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
