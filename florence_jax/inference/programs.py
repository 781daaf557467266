"""The pipeline's own programs: traced from the model, compiled once per bucket of shapes."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import numpy as np

from florence_jax.generation import Constraint, GenerateOutput, GenerationConfig
from florence_jax.generation.generate import generate_program, prepare
from florence_jax.inference.buckets import batch_buckets
from florence_jax.inference.encoding import stack_features
from florence_jax.model import Model, Params


@functools.partial(jax.jit, static_argnums=0)
def encode_program(model: Model, params: Params, pixel_values: jax.Array) -> tuple[jax.Array, ...]:
    """float[N, H, W, 3] -> N arrays float[I, D], so that images part without another program."""
    return tuple(model.encode_image(params, pixel_values))


@dataclass(frozen=True, kw_only=True)
class LivePrograms:
    """`Programs` of a model and its weights."""

    model: Model
    params: Params

    def batch_buckets(self, batch_size: int) -> tuple[int, ...]:
        return batch_buckets(batch_size)

    def encode(self, pixel_values: np.ndarray) -> tuple[jax.Array, ...]:
        return encode_program(self.model, self.params, pixel_values)

    def generate(
        self,
        features: tuple[jax.Array, ...],
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        settings: GenerationConfig,
        constraint: Constraint | None = None,
    ) -> GenerateOutput:
        prepared = prepare(
            self.model,
            self.params,
            image_features=stack_features(features),
            input_ids=input_ids,
            attention_mask=attention_mask,
            config=settings,
            constraint=constraint,
        )
        return generate_program(*prepared)

    def compile_encode(self, batch: int, size: tuple[int, int]) -> jax.ShapeDtypeStruct:
        """Compile for `batch` images of `size` (height, width), without running anything.

        Returns:
            What one image's features, float[I, D], will be.
        """
        pixels = jax.ShapeDtypeStruct((batch, *size, 3), np.float32)
        lowered = encode_program.lower(self.model, self.params, pixels)
        features = lowered.out_info[0]
        placed = lowered.compile().output_shardings[0]
        return jax.ShapeDtypeStruct(
            features.shape, features.dtype, sharding=placed if self._committed else None
        )

    def compile_generate(
        self,
        batch: int,
        features: jax.ShapeDtypeStruct,
        prompt_tokens: int,
        settings: GenerationConfig,
    ) -> None:
        """Compile for `batch` prompts of so many tokens, about images with these features."""
        stacked = stack_features.lower((features,) * batch)
        placed = stacked.compile().output_shardings
        prepared = prepare(
            self.model,
            self.params,
            image_features=jax.ShapeDtypeStruct(
                stacked.out_info.shape,
                stacked.out_info.dtype,
                sharding=placed if self._committed else None,
            ),
            input_ids=np.zeros((batch, prompt_tokens), np.int32),
            config=settings,
        )
        generate_program.lower(*prepared).compile()

    @property
    def _committed(self) -> bool:
        """Do the weights pin results to their devices? A program compiled for one case is not
        used in the other."""
        return any(
            leaf.committed for leaf in jax.tree.leaves(self.params) if isinstance(leaf, jax.Array)
        )
