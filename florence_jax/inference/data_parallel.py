"""All devices of this host on one mesh, each with a part of every batch.

The program that a device runs is the one that it would run alone, on its own rows: no device waits
for another one's tokens, and a row's numbers do not depend on how many devices there are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from florence_jax.generation import Constraint, GenerateOutput, GenerationConfig
from florence_jax.generation.decode_config import DecodeParams
from florence_jax.generation.generate import generate_jit, prepare_inputs
from florence_jax.inference.base_pipeline import BasePipeline
from florence_jax.inference.compiled import encode_jit
from florence_jax.inference.image_encoder import stack_features
from florence_jax.inference.pipeline import Florence2Pipeline
from florence_jax.model import Model, Params
from florence_jax.sharding.mesh import make_mesh

_ROWS = PartitionSpec("data")
_WHOLE = PartitionSpec()


def replicate_over_local_devices(
    pipeline: BasePipeline, devices: Sequence[Any] | None = None
) -> BasePipeline:
    """The pipeline with its parameters on all of this host's devices, if there are several.

    Exported programs stay on the one device that they were exported for, and a model that is on a
    mesh already on that.
    """
    devices = jax.local_devices() if devices is None else devices
    if len(devices) == 1 or not isinstance(pipeline, Florence2Pipeline):
        return pipeline
    if pipeline.model.mesh is not None:
        return pipeline
    mesh = make_mesh("data=-1", devices)
    params = jax.device_put(pipeline.params, NamedSharding(mesh, _WHOLE))
    fields = {field.name: getattr(pipeline, field.name) for field in dataclasses.fields(pipeline)}
    return _MeshPipeline(**(fields | {"params": params}), mesh=mesh)


@dataclass(frozen=True, kw_only=True)
class _MeshPipeline(Florence2Pipeline):
    mesh: Mesh

    @property
    def programs(self) -> DataParallelFns:  # pyright: ignore[reportIncompatibleVariableOverride]
        return DataParallelFns(model=self.model, params=self.params, mesh=self.mesh)


@dataclass(frozen=True, kw_only=True)
class DataParallelFns:
    """`CompiledFns` whose batches are `batch_size` rows for each device of the mesh."""

    model: Model
    params: Params
    mesh: Mesh

    @property
    def device_count(self) -> int:
        return self.mesh.size

    def batch_buckets(self, batch_size: int) -> tuple[int, ...]:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        return (batch_size * self.device_count,)

    def encode(self, pixel_values: Any) -> tuple[jax.Array, ...]:
        """As `CompiledFns.encode`; every device then has every image's features.

        So any device can be asked about any image.
        """
        return _encode(self.mesh, self.model, self.params, self._parted(pixel_values))

    def generate(
        self,
        features: tuple[jax.Array, ...],
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        settings: GenerationConfig,
        constraint: Constraint | None = None,
        rng: jax.Array | None = None,
    ) -> GenerateOutput:
        if rng is not None:
            raise ValueError("a batch that is divided over local devices is not sampled")
        prepared = prepare_inputs(
            self.model,
            self.params,
            image_features=_stack(self.mesh, features),
            input_ids=input_ids,
            attention_mask=attention_mask,
            config=settings,
            constraint=constraint,
        )
        return _generate(
            self.mesh,
            self.model,
            prepared.plan,
            self.params,
            prepared.image,
            self._parted(prepared.input_ids),
            self._parted(prepared.attention_mask),
            prepared.values,
        )

    def _parted(self, rows: Any) -> jax.Array:
        return jax.device_put(rows, NamedSharding(self.mesh, _ROWS))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(mesh: Mesh, model: Model, params: Params, pixels: jax.Array) -> tuple[jax.Array, ...]:
    def local(params: Params, pixels: jax.Array) -> jax.Array:
        return stack_features(encode_jit(model, params, pixels))

    features = jax.shard_map(
        local, mesh=mesh, in_specs=(_WHOLE, _ROWS), out_specs=_ROWS, check_vma=False
    )(params, pixels)
    everywhere = jax.lax.with_sharding_constraint(features, NamedSharding(mesh, _WHOLE))
    return tuple(everywhere)


@functools.partial(jax.jit, static_argnums=0)
def _stack(mesh: Mesh, features: Sequence[jax.Array]) -> jax.Array:
    return jax.lax.with_sharding_constraint(stack_features(features), NamedSharding(mesh, _ROWS))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _generate(
    mesh: Mesh,
    model: Model,
    plan: Any,
    params: Params,
    features: jax.Array,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    values: DecodeParams,
) -> GenerateOutput:
    def local(
        params: Params, features: jax.Array, ids: jax.Array, mask: jax.Array, values: DecodeParams
    ) -> GenerateOutput:
        return generate_jit(model, plan, False, params, features, ids, mask, values, None)

    specs = jax.tree.map(lambda _: _WHOLE, values)
    if values.constraint is not None:
        specs = specs._replace(constraint=specs.constraint._replace(start=_ROWS))
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(_WHOLE, _ROWS, _ROWS, _ROWS, specs),
        out_specs=_ROWS,
        check_vma=False,
    )(params, features, input_ids, attention_mask, values)
