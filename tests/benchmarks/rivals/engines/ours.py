"""This library, through what it offers its users."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from florence_jax.generation import PUBLISHED, generate
from florence_jax.inference.load_sharded import load
from florence_jax.matmul_precision import at_model_precision
from florence_jax.model import Model, Params
from florence_jax.runtime.compilation_cache import use_compilation_cache
from tests.benchmarks.rivals.engines.engine import Call, NotOffered
from tests.benchmarks.rivals.engines.sizes import matmul_side, memory_shape
from tests.benchmarks.rivals.inputs import Inputs, preprocess
from tests.benchmarks.rivals.settings import (
    LONG_LIMIT,
    NO_REPEAT_NGRAM_SIZE,
    NUM_BEAMS,
    START_TOKENS,
    Settings,
)

# Above any spread of logits: `</s>` wins as soon as it is allowed.
_ENDING_BIAS = 100.0


class Ours:
    """An `Engine`."""

    def __init__(self, settings: Settings):
        # As the pipeline does for its users.
        use_compilation_cache()
        self.settings = settings
        self.model, params = load(settings.weights, settings.dtype)
        self.params: Params = jax.device_put(params)

    def call(self, name: str, inputs: Inputs) -> Call:
        match name:
            case "matmul":
                side = matmul_side(self.settings)
                ones = jnp.ones((side, side), self.settings.dtype)
                return lambda: _multiply(ones, ones).block_until_ready()
            case "memory":
                rows, columns = memory_shape(self.settings)
                matrix, vector = jnp.ones((rows, columns)), jnp.ones((columns,))
                return lambda: _multiply(matrix, vector).block_until_ready()
            case "vision":
                pixels = jax.device_put(inputs.pixel_values)
                return lambda: self.model.encode_image(self.params, pixels).block_until_ready()
            case "encoder":
                features, prompt = self._split(inputs)
                return lambda: _encode(
                    self.model, self.params, features, prompt
                ).block_until_ready()
            case "greedy":
                return self._answer(inputs, beams=1)
            case "beam":
                return self._answer(inputs, beams=NUM_BEAMS)
            case "beam-free":
                return self._answer(inputs, beams=NUM_BEAMS, no_repeat_ngram_size=0)
            case "beam-start":
                return self._answer(inputs, beams=NUM_BEAMS, tokens=START_TOKENS)
            case "images":
                return lambda: self._images(inputs)
            case "limit-exact":
                return self._ending(inputs, limit=self.settings.new_tokens)
            case "limit-long":
                positions = self.model.config.text.max_position_embeddings
                return self._ending(inputs, limit=min(LONG_LIMIT, positions))
        raise NotOffered(name)

    def log_likelihood(self, name: str, inputs: Inputs, tokens: np.ndarray) -> np.ndarray:
        """Mean log-probability of the free tokens of each answer to a call, float32[B].

        Args:
            name, inputs: the call.
            tokens: int[B, T]: the decoder's start token, a forced `<s>`, free ones, a forced `</s>`
        """
        features, prompt = self._split(inputs)
        if name == "images":
            pixels = jnp.asarray(preprocess(inputs.pictures, self.settings.image_size))
            features = self.model.encode_image(self.params, pixels)
        return np.asarray(
            _log_likelihood(self.model, self.params, features, prompt, jnp.asarray(tokens))
        )

    def _split(self, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        """The source's first tokens as image features, and the prompt."""
        prompt = jnp.asarray(inputs.prompt_ids)
        image_ids = inputs.source_ids[:, : -prompt.shape[1]]
        return self.params["shared"]["embedding"][image_ids], prompt

    def _answer(
        self,
        inputs: Inputs,
        *,
        beams: int,
        tokens: int | None = None,
        no_repeat_ngram_size: int = NO_REPEAT_NGRAM_SIZE,
    ) -> Call:
        features, _ = self._split(inputs)
        count = tokens or self.settings.new_tokens
        config = dataclasses.replace(
            PUBLISHED,
            num_beams=beams,
            no_repeat_ngram_size=no_repeat_ngram_size,
            min_new_tokens=count,
            max_new_tokens=count,
        )
        return lambda: (
            generate(
                self.model,
                self.params,
                image_features=features,
                input_ids=inputs.prompt_ids,
                config=config,
            ).sequences
        )

    def _images(self, inputs: Inputs) -> np.ndarray | jax.Array:
        count = self.settings.new_tokens
        return generate(
            self.model,
            self.params,
            pixel_values=preprocess(inputs.pictures, self.settings.image_size),
            input_ids=inputs.prompt_ids,
            config=dataclasses.replace(PUBLISHED, min_new_tokens=count, max_new_tokens=count),
        ).sequences

    def _ending(self, inputs: Inputs, *, limit: int) -> Call:
        """Beam search over a model that ends every answer at `new_tokens` tokens by itself.

        Its output bias makes `</s>` the best token wherever it is allowed, and `min_new_tokens`
        allows it one token before the end, so that the limit alone tells the calls apart.
        """
        features, _ = self._split(inputs)
        text = self.model.config.text
        bias = np.zeros(text.vocab_size, np.float32)
        bias[text.eos_token_id] = _ENDING_BIAS
        model = Model(
            config=dataclasses.replace(self.model.config, final_logits_bias=True),
            dtype=self.model.dtype,
        )
        params = self.params | {"final_logits_bias": jnp.asarray(bias)}
        config = dataclasses.replace(
            PUBLISHED, min_new_tokens=self.settings.new_tokens - 1, max_new_tokens=limit
        )
        return lambda: (
            generate(
                model,
                params,
                image_features=features,
                input_ids=inputs.prompt_ids,
                config=config,
            ).sequences
        )


@jax.jit
def _multiply(left: jax.Array, right: jax.Array) -> jax.Array:
    # A ceiling of float32 is that of float32, as everything of ours that it is held against.
    return jnp.matmul(left, right, precision="highest" if left.dtype == jnp.float32 else None)


@functools.partial(jax.jit, static_argnums=0)
@at_model_precision
def _encode(model: Model, params: Params, features: jax.Array, prompt: jax.Array) -> jax.Array:
    return model.bind(params).encode(features, prompt, jnp.ones(prompt.shape, bool))[0]


@functools.partial(jax.jit, static_argnums=0)
@at_model_precision
def _log_likelihood(
    model: Model, params: Params, features: jax.Array, prompt: jax.Array, tokens: jax.Array
) -> jax.Array:
    module = model.bind(params)
    hidden_states, mask = module.encode(features, prompt, jnp.ones(prompt.shape, bool))
    scores = jax.nn.log_softmax(module.decode(tokens[:, :-1], hidden_states, mask))
    chosen = jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1)[..., 0]
    return chosen[:, 1:-1].mean(-1)
