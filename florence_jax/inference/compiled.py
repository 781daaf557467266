"""A model's compiled functions: on one device, on all of a host's, or on a mesh.

On a mesh, the weights are divided and every device works on every batch. Where each device holds
all weights, it runs the function that it would run alone, on its own rows: no device waits for
another one's tokens, and a row's numbers do not depend on how many devices there are.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from florence_jax.generation import Constraint, GenerateOutput, GenerationConfig
from florence_jax.generation.decode_config import DecodeParams, DecodeStatic
from florence_jax.generation.generate import generate_jit, run_generate
from florence_jax.generation.inputs import GenerateInputs, prepare_inputs
from florence_jax.generation.shard_inputs import shard_inputs, unpad_outputs
from florence_jax.inference.batching import batch_buckets
from florence_jax.inference.image_encoder import stack_features
from florence_jax.matmul_precision import MatmulPrecision
from florence_jax.model import Model, Params
from florence_jax.sharding import all_gather_to_hosts, use_mesh
from florence_jax.sharding.batch import divide_batch

_ROWS = PartitionSpec("data")
_WHOLE = PartitionSpec()


@dataclass(frozen=True, kw_only=True)
class JitFns:
    """`CompiledFns` of a model and its weights.

    Attributes:
        replicas: devices that each hold all weights, on the axis "data"; None where one does, or
            where the model's own mesh divides them.
    """

    model: Model
    params: Params = field(repr=False)
    replicas: Mesh | None = None

    @property
    def matmul_precision(self) -> MatmulPrecision:
        return self.model.matmul_precision

    @property
    def device_count(self) -> int:
        return 1 if self.replicas is None else self.replicas.size

    def batch_buckets(self, batch_size: int) -> tuple[int, ...]:
        sizes = batch_buckets(batch_size)
        return sizes if self.replicas is None else (max(sizes) * self.device_count,)

    def encode(self, pixel_values: np.ndarray | jax.Array) -> tuple[jax.Array, ...]:
        mesh = self._mesh
        if mesh is None:
            return encode_jit(self.model, self.params, pixel_values)
        pixels = divide_batch(mesh, pixel_values)
        if self.replicas is None:
            features = self.model.encode_image(self.params, pixels)
        else:
            features = _encode_on_replicas(mesh, self.model, self.params, pixels)
        # On every device, so that any of them can be asked about any image.
        return tuple(all_gather_to_hosts(mesh, features))[: len(pixel_values)]

    def generate(
        self,
        image_features: jax.Array,
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        settings: GenerationConfig,
        constraint: Constraint | None = None,
        rng: jax.Array | None = None,
    ) -> GenerateOutput:
        if rng is not None and self.replicas is not None:
            raise ValueError("a batch that is divided over local devices is not sampled")
        prepared = prepare_inputs(
            self.model,
            self.params,
            image_features=image_features,
            input_ids=input_ids,
            attention_mask=attention_mask,
            config=settings,
            constraint=constraint,
            rng=rng,
        )
        if self.replicas is None:
            return run_generate(prepared)
        divided = shard_inputs(prepared, self.replicas)
        output = generate_on_replicas(self.replicas, *divided[:-1])
        return unpad_outputs(output, len(input_ids), self.replicas)

    def compile_encode(self, batch: int, size: tuple[int, int]) -> jax.ShapeDtypeStruct:
        """Compile for `batch` images of `size` (height, width), without running anything.

        Returns:
            What one image's features, float[I, D], will be.
        """
        if self._mesh is not None:
            features = self.encode(np.zeros((batch, *size, 3), np.float32))[0]
            return jax.ShapeDtypeStruct(features.shape, features.dtype, sharding=features.sharding)
        pixels = jax.ShapeDtypeStruct((batch, *size, 3), np.float32)
        lowered = encode_jit.lower(self.model, self.params, pixels)
        features = lowered.out_info[0]
        sharding = lowered.compile().output_shardings[0]
        return jax.ShapeDtypeStruct(
            features.shape, features.dtype, sharding=sharding if self._committed else None
        )

    def compile_generate(
        self,
        batch: int,
        features: jax.ShapeDtypeStruct,
        prompt_tokens: int,
        settings: GenerationConfig,
        constraint: Constraint | None = None,
    ) -> None:
        """Compile for `batch` prompts of `prompt_tokens` tokens, about images with these features.

        Each row begins where the first row of `constraint` does.
        """
        stacked = stack_features.lower((features,) * batch)
        stacked_at = stacked.compile().output_shardings
        prepared = prepare_inputs(
            self.model,
            self.params,
            image_features=jax.ShapeDtypeStruct(
                stacked.out_info.shape,
                stacked.out_info.dtype,
                sharding=stacked_at if self._committed else None,
            ),
            input_ids=np.zeros((batch, prompt_tokens), np.int32),
            config=settings,
            constraint=None if constraint is None else constraint.repeated(batch),
            rng=jax.random.key(0) if settings.do_sample else None,
        )
        mesh = self._mesh
        arguments: GenerateInputs = prepared if mesh is None else shard_inputs(prepared, mesh)
        if self.replicas is not None:
            generate_on_replicas.lower(self.replicas, *arguments[:-1]).compile()
            return
        with use_mesh(mesh):
            generate_jit.lower(*arguments).compile()

    @property
    def _mesh(self) -> Mesh | None:
        return self.model.mesh if self.replicas is None else self.replicas

    @property
    def _committed(self) -> bool:
        """Do the weights pin results to their devices? A program compiled for one case is not
        used in the other."""
        return any(
            leaf.committed for leaf in jax.tree.leaves(self.params) if isinstance(leaf, jax.Array)
        )


@functools.partial(jax.jit, static_argnums=0)
def encode_jit(model: Model, params: Params, pixel_values: jax.Array) -> tuple[jax.Array, ...]:
    """float[N, H, W, 3] -> N arrays float[I, D], so that images part without another program."""
    return tuple(model.encode_image(params, pixel_values))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode_on_replicas(mesh: Mesh, model: Model, params: Params, pixels: jax.Array) -> jax.Array:
    """float[N, H, W, 3] -> float[N, I, D], each device's rows encoded as it would alone."""

    def local(params: Params, pixels: jax.Array) -> jax.Array:
        return stack_features(encode_jit(model, params, pixels))

    return jax.shard_map(
        local, mesh=mesh, in_specs=(_WHOLE, _ROWS), out_specs=_ROWS, check_vma=False
    )(params, pixels)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def generate_on_replicas(
    mesh: Mesh,
    model: Model,
    plan: DecodeStatic,
    is_pixels: bool,
    params: Params,
    image: jax.Array,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    values: DecodeParams,
) -> GenerateOutput:
    """`generate_jit` on each device's rows; without a key, as nothing is sampled."""

    def local(
        params: Params, image: jax.Array, ids: jax.Array, mask: jax.Array, values: DecodeParams
    ) -> GenerateOutput:
        return generate_jit(model, plan, is_pixels, params, image, ids, mask, values, None)

    specs = jax.tree.map(lambda _: _WHOLE, values)
    if values.constraint is not None:
        specs = specs._replace(constraint=specs.constraint._replace(start=_ROWS))
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(_WHOLE, _ROWS, _ROWS, _ROWS, specs),
        out_specs=_ROWS,
        check_vma=False,
    )(params, image, input_ids, attention_mask, values)
