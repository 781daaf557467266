"""`generate`: image and prompt in, tokens out, in one compiled program.

A program is compiled once per model, decoding plan and bucket of shapes, and reused for every image
and prompt that fits the bucket: prompts are padded to 16, 32, 64, ... tokens and the token buffers
grow through 64, 128, 256, ..., both capped by the position table. Padding is masked and changes
nothing.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from florence_jax.generation.beam import beam_search
from florence_jax.generation.config import GenerationConfig
from florence_jax.generation.output import GenerateOutput
from florence_jax.generation.plan import DecodingPlan, DecodingValues, make_plan
from florence_jax.generation.sampling import sample
from florence_jax.generation.stepping import Cache
from florence_jax.model import Model, Params
from florence_jax.model.cache import grow_cache

SMALLEST_PROMPT_BUCKET = 16


def generate(
    model: Model,
    params: Params,
    *,
    pixel_values: ArrayLike | None = None,
    image_features: ArrayLike | None = None,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None = None,
    config: GenerationConfig,
    rng: jax.Array | None = None,
) -> GenerateOutput:
    """Generates text for a batch of images and prompts.

    A row's answer does not depend on the other rows. With `do_sample`, row b draws from
    `fold_in(rng, b)`.

    Args:
      model: the handle; `params` are its weights.
      pixel_values: float[B, H, W, 3], or float[B, F, H, W, 3] for F frames; normalised.
      image_features: float[B, I, D] from `model.encode_image`, instead of `pixel_values`: encode
        an image once and ask many times.
      input_ids: int[B, L], the text tokens alone, padded to a common length.
      attention_mask: [B, L], zero or False at padding; by default whatever equals the pad id.
      config: what to generate; token ids it leaves out are the model's.
      rng: a `jax.random.key`; needed when `config.do_sample`.

    Returns:
      Numpy arrays trimmed to the longest answer, see `GenerateOutput`.

    Raises:
      ValueError: inputs that do not go together, a prompt too long for the encoder's position
        table, or `max_new_tokens` past the decoder's.
    """
    output = generate_padded(
        model,
        params,
        pixel_values=pixel_values,
        image_features=image_features,
        input_ids=input_ids,
        attention_mask=attention_mask,
        config=config,
        rng=rng,
    )
    return output.trimmed()


def generate_padded(
    model: Model,
    params: Params,
    *,
    pixel_values: ArrayLike | None = None,
    image_features: ArrayLike | None = None,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None = None,
    config: GenerationConfig,
    rng: jax.Array | None = None,
) -> GenerateOutput:
    """`generate` without waiting for the device: the arrays stay there, padded to the bucket.

    Call `.trimmed()` on the result when it is needed; until then the host can prepare more work.
    """
    plan, values = make_plan(config, model.config.text)
    if (pixel_values is None) == (image_features is None):
        raise ValueError("pass either pixel_values or image_features, and not both")
    if pixel_values is not None:
        image = jnp.asarray(pixel_values)
        image_tokens = _count_image_tokens(model, image.shape)
    else:
        image = jnp.asarray(image_features)
        if image.ndim != 3:
            raise ValueError(f"image_features must be float[B, I, D], got shape {image.shape}")
        image_tokens = image.shape[1]
    ids, mask = _pad_prompt(model, plan, image_tokens, input_ids, attention_mask)
    if ids.shape[0] != image.shape[0]:
        raise ValueError(f"{image.shape[0]} images were given for {ids.shape[0]} prompts")
    return _generate(
        model,
        plan,
        pixel_values is not None,
        params,
        image,
        ids,
        mask,
        values,
        rng if config.do_sample else None,
    )


def count_programs() -> int:
    """How many programs `generate` has compiled in this process."""
    return _generate._cache_size()  # pyright: ignore[reportAttributeAccessIssue]


def prompt_bucket(length: int, limit: int) -> int:
    """The padded length of a prompt: the first of 16, 32, 64, ... that fits, at most `limit`."""
    bucket = SMALLEST_PROMPT_BUCKET
    while bucket < length:
        bucket *= 2
    return min(bucket, limit)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _generate(
    model: Model,
    plan: DecodingPlan,
    is_pixels: bool,
    params: Params,
    image: jax.Array,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    values: DecodingValues,
    rng: jax.Array | None,
) -> GenerateOutput:
    module = model.bind(params)
    features = module.encode_image(image) if is_pixels else image
    memory, memory_mask = module.encode(features, input_ids, attention_mask)
    cross_kv = module.decoder_cross_kv(memory)

    def step(tokens: jax.Array, index: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        return module.decode_step(tokens, index, cache, cross_kv, memory_mask)

    batch = input_ids.shape[0]
    search, width = (
        (beam_search, plan.num_beams) if plan.num_beams > 1 else (sample, plan.num_return_sequences)
    )
    cache = module.init_cache(batch, width, plan.buffers[0])
    return search(step, cache, grow_cache, batch, plan, values, rng)


def _count_image_tokens(model: Model, shape: tuple[int, ...]) -> int:
    if len(shape) not in (4, 5) or shape[-1] != model.config.vision.in_channels:
        raise ValueError(
            f"pixel_values must be float[B, H, W, 3] or float[B, F, H, W, 3], got shape {shape}: "
            "channels come last"
        )
    frames = shape[1] if len(shape) == 5 else 1
    return model.config.num_image_tokens(shape[-3], shape[-2], frames)


def _pad_prompt(
    model: Model,
    plan: DecodingPlan,
    image_tokens: int,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts and their mask, on the host, padded to a bucket: int32[B, P] and bool[B, P]."""
    ids = np.asarray(input_ids)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"input_ids must be int[B, L], got {ids.dtype}{list(ids.shape)}")
    mask = ids != plan.pad_token_id if attention_mask is None else np.asarray(attention_mask)
    if mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask has shape {mask.shape}, input_ids {ids.shape}: they must be equal"
        )
    length, positions = ids.shape[1], model.config.text.max_position_embeddings
    limit = positions - image_tokens
    if length > limit:
        raise ValueError(
            f"the prompt is too long: {image_tokens} image tokens + {length} text tokens = "
            f"{image_tokens + length}, but max_position_embeddings is {positions}, which leaves "
            f"{max(limit, 0)} for text"
        )
    padding = ((0, 0), (0, prompt_bucket(length, limit) - length))
    ids = np.pad(ids.astype(np.int32), padding, constant_values=plan.pad_token_id)
    return ids, np.pad(mask.astype(np.bool_), padding)
