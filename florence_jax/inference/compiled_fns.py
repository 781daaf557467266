"""`CompiledFns`: what the engine asks of a model, compiled here or exported before."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import numpy as np

from florence_jax.generation import Constraint, GenerateOutput, GenerationConfig
from florence_jax.matmul_precision import MatmulPrecision


class CompiledFns(Protocol):
    """The compiled functions of a model; calls return before the device has finished."""

    @property
    def params(self) -> Any:
        """The weights that they run with."""
        ...

    @property
    def matmul_precision(self) -> MatmulPrecision:
        """How they multiply float32, see `florence_jax.model.Model`."""
        ...

    @property
    def device_count(self) -> int:
        """The devices that each answer an equal part of every batch by themselves."""
        ...

    def batch_buckets(self, batch_size: int) -> tuple[int, ...]:
        """The batch sizes, up to `batch_size` a device, that there are functions for."""
        ...

    def encode(self, pixel_values: np.ndarray | jax.Array) -> tuple[jax.Array, ...]:
        """Pixels float32[N, H, W, 3] -> the features of each image, N arrays float[I, D]."""
        ...

    def generate(
        self,
        image_features: jax.Array,
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        settings: GenerationConfig,
        constraint: Constraint | None = None,
        rng: jax.Array | None = None,
    ) -> GenerateOutput:
        """float[B, I, D] and int[B, L] prompts with their mask -> B answers; `rng` is a key, needed
        where tokens are drawn."""
        ...
