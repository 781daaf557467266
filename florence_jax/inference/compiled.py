"""The pipeline's own programs: traced from the model, compiled once per bucket of shapes."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import jax
import numpy as np

from florence_jax.generation import Constraint, GenerateOutput, GenerationConfig
from florence_jax.generation.generate import generate_jit, prepare_inputs, run_generate
from florence_jax.generation.shard_inputs import shard_inputs
from florence_jax.inference.batching import batch_buckets
from florence_jax.inference.image_encoder import stack_features
from florence_jax.model import Model, Params
from florence_jax.sharding import (
    all_gather_to_hosts,
    batch_sharding,
    pad_rows,
    padded_rows,
    use_mesh,
)


@functools.partial(jax.jit, static_argnums=0)
def encode_jit(model: Model, params: Params, pixel_values: jax.Array) -> tuple[jax.Array, ...]:
    """float[N, H, W, 3] -> N arrays float[I, D], so that images part without another program."""
    return tuple(model.encode_image(params, pixel_values))


@dataclass(frozen=True, kw_only=True)
class JitFns:
    """`CompiledFns` of a model and its weights."""

    model: Model
    params: Params = field(repr=False)

    def batch_buckets(self, batch_size: int) -> tuple[int, ...]:
        return batch_buckets(batch_size)

    def encode(self, pixel_values: np.ndarray | jax.Array) -> tuple[jax.Array, ...]:
        mesh = self.model.mesh
        if mesh is None:
            return encode_jit(self.model, self.params, pixel_values)
        rows = padded_rows(mesh, len(pixel_values))
        divided = jax.device_put(pad_rows(pixel_values, rows), batch_sharding(mesh))
        features = self.model.encode_image(self.params, divided)
        # On every device, so that any of them can be asked about any image.
        return tuple(all_gather_to_hosts(mesh, features))[: len(pixel_values)]

    def generate(
        self,
        features: tuple[jax.Array, ...],
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        settings: GenerationConfig,
        constraint: Constraint | None = None,
        rng: jax.Array | None = None,
    ) -> GenerateOutput:
        prepared = prepare_inputs(
            self.model,
            self.params,
            image_features=stack_features(features),
            input_ids=input_ids,
            attention_mask=attention_mask,
            config=settings,
            constraint=constraint,
            rng=rng,
        )
        return run_generate(prepared)

    def compile_encode(self, batch: int, size: tuple[int, int]) -> jax.ShapeDtypeStruct:
        """Compile for `batch` images of `size` (height, width), without running anything.

        Returns:
            What one image's features, float[I, D], will be.
        """
        if self.model.mesh is not None:
            features = self.encode(np.zeros((batch, *size, 3), np.float32))[0]
            return jax.ShapeDtypeStruct(features.shape, features.dtype, sharding=features.sharding)
        pixels = jax.ShapeDtypeStruct((batch, *size, 3), np.float32)
        lowered = encode_jit.lower(self.model, self.params, pixels)
        features = lowered.out_info[0]
        shard_inputs = lowered.compile().output_shardings[0]
        return jax.ShapeDtypeStruct(
            features.shape, features.dtype, sharding=shard_inputs if self._committed else None
        )

    def compile_generate(
        self,
        batch: int,
        features: jax.ShapeDtypeStruct,
        prompt_tokens: int,
        settings: GenerationConfig,
        constraint: Constraint | None = None,
    ) -> None:
        """Compile for `batch` prompts of so many tokens, about images with these features.

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
        with use_mesh(self.model.mesh):
            mesh = self.model.mesh
            arguments = prepared if mesh is None else shard_inputs(prepared, mesh)
            generate_jit.lower(*arguments).compile()

    @property
    def _committed(self) -> bool:
        """Do the weights pin results to their devices? A program compiled for one case is not
        used in the other."""
        return any(
            leaf.committed for leaf in jax.tree.leaves(self.params) if isinstance(leaf, jax.Array)
        )
