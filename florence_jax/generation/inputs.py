"""Prompts as a compiled program takes them: checked, and padded to a bucket of lengths."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jax.typing import ArrayLike

SMALLEST_PROMPT_BUCKET = 16


def prompt_bucket(length: int, limit: int) -> int:
    """The padded length of a prompt: the first of 16, 32, 64, ... that fits, at most `limit`."""
    bucket = SMALLEST_PROMPT_BUCKET
    while bucket < length:
        bucket *= 2
    return min(bucket, limit)


def prompt_limit(length: int, image_tokens: int, positions: int) -> int:
    """How many text tokens fit behind the image's.

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
