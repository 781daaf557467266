"""The inputs of `generate`: checked, and prompts padded to a bucket of lengths."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from florence_jax.generation.constraints import Constraint, check_rows
from florence_jax.generation.decode_config import DecodeParams, DecodeStatic, make_plan
from florence_jax.generation_config import GenerationConfig

if TYPE_CHECKING:
    from florence_jax.model import Model, Params

SMALLEST_PROMPT_BUCKET = 16


class GenerateInputs(NamedTuple):
    """A checked and padded batch: the arguments of `generate_jit`, in its order.

    Attributes:
        model, plan, is_pixels: static; `is_pixels` tells whether `image` is pixels or features.
        params: the weights.
        image: float[B, H, W, 3], float[B, F, H, W, 3] or features float[B, I, D].
        input_ids: int32[B, L], L a bucket of `prompt_bucket`.
        attention_mask: bool[B, L].
        values: the traced decoding settings.
        rng: a key where tokens are sampled, else None.
    """

    model: Model
    plan: DecodeStatic
    is_pixels: bool
    params: Params
    image: jax.Array | np.ndarray | jax.ShapeDtypeStruct
    input_ids: np.ndarray
    attention_mask: np.ndarray
    values: DecodeParams
    rng: jax.Array | None


def prepare_inputs(
    model: Model,
    params: Params,
    *,
    pixel_values: ArrayLike | jax.ShapeDtypeStruct | None = None,
    image_features: ArrayLike | jax.ShapeDtypeStruct | None = None,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None = None,
    config: GenerationConfig,
    constraint: Constraint | None = None,
    rng: jax.Array | None = None,
) -> GenerateInputs:
    """Check the arguments of `generate` and pad its prompts, before anything runs.

    The arguments and errors are those of `generate`. The image may be a `jax.ShapeDtypeStruct`, to
    lower `generate_jit` before there is an image.
    """
    plan, values = make_plan(config, model.config.text, constraint)
    if (pixel_values is None) == (image_features is None):
        raise ValueError("pass either pixel_values or image_features, and not both")
    if pixel_values is not None:
        image = _array(pixel_values)
        image_tokens = _count_image_tokens(model, image.shape)
    else:
        image = _array(image_features)
        if image.ndim != 3:
            raise ValueError(f"image_features must be float[B, I, D], got shape {image.shape}")
        image_tokens = image.shape[1]
    ids, mask = check_prompt(
        input_ids, attention_mask, plan.pad_token_id, model.config.text.vocab_size
    )
    length = ids.shape[1]
    limit = prompt_limit(length, image_tokens, model.config.text.max_position_embeddings)
    ids, mask = pad_prompt(ids, mask, prompt_bucket(length, limit), plan.pad_token_id)
    if ids.shape[0] != image.shape[0]:
        raise ValueError(f"{image.shape[0]} images were given for {ids.shape[0]} prompts")
    if constraint is not None:
        check_rows(constraint, ids.shape[0])
    return GenerateInputs(
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


def prompt_bucket(length: int, limit: int) -> int:
    """The padded length of a prompt: the first of 16, 32, 64, ... that fits, at most `limit`."""
    bucket = SMALLEST_PROMPT_BUCKET
    while bucket < length:
        bucket *= 2
    return min(bucket, limit)


def prompt_limit(length: int, image_tokens: int, positions: int) -> int:
    """The number of text tokens that fit behind the image tokens.

    Raises:
        ValueError: a prompt of `length` tokens does not.
    """
    limit = positions - image_tokens
    if length > limit:
        raise ValueError(
            f"the prompt is too long: {image_tokens} image tokens + {length} text tokens = "
            f"{image_tokens + length}, but max_position_embeddings is {positions}, which leaves "
            f"{max(limit, 0)} for text"
        )
    return limit


def prompt_buckets(lengths: Iterable[int], image_tokens: int, positions: int) -> tuple[int, ...]:
    """The padded lengths of prompts of `lengths` tokens, in ascending order.

    Raises:
        ValueError: a prompt does not fit behind the image's tokens.
    """
    limits = {length: prompt_limit(length, image_tokens, positions) for length in lengths}
    return tuple(sorted({prompt_bucket(length, limit) for length, limit in limits.items()}))


def check_prompt(
    input_ids: ArrayLike, attention_mask: ArrayLike | None, pad_token_id: int, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int32[B, L] and their mask bool[B, L], on the host.

    Raises:
        ValueError: not integers of two axes, a token outside the vocabulary, or a mask of another
            shape.
    """
    ids = np.asarray(input_ids)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"input_ids must be int[B, L], got {ids.dtype}{list(ids.shape)}")
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if outside.size:
        # On the device it would be taken for the last token there is.
        raise ValueError(
            f"input_ids holds token {outside[0]}, outside the model's vocabulary of {vocab_size}: "
            "use the checkpoint's own tokenizer, or resize the model's embeddings to the tokenizer"
        )
    mask = ids != pad_token_id if attention_mask is None else np.asarray(attention_mask)
    if mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask has shape {mask.shape}, input_ids {ids.shape}: they must be equal"
        )
    return ids.astype(np.int32), mask.astype(np.bool_)


def pad_prompt(
    input_ids: np.ndarray, attention_mask: np.ndarray, bucket: int, pad_token_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays with masked padding behind each prompt, up to `bucket` tokens: [B, bucket]."""
    padding = ((0, 0), (0, bucket - input_ids.shape[1]))
    return (
        np.pad(input_ids, padding, constant_values=pad_token_id),
        np.pad(attention_mask, padding),
    )


def _array(value: Any) -> Any:
    # In numpy: on the device, the conversion would be one more program per shape.
    return value if isinstance(value, jax.Array | jax.ShapeDtypeStruct) else np.asarray(value)


def _count_image_tokens(model: Model, shape: tuple[int, ...]) -> int:
    if len(shape) not in (4, 5) or shape[-1] != model.config.vision.in_channels:
        raise ValueError(
            f"pixel_values must be float[B, H, W, 3] or float[B, F, H, W, 3], got shape {shape}: "
            "channels come last"
        )
    frames = shape[1] if len(shape) == 5 else 1
    return model.config.num_image_tokens(shape[-3], shape[-2], frames)
