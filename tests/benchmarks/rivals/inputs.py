"""The same pictures, pixels and tokens for every engine, drawn anew in each process."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from florence_jax.config import Florence2Config
from florence_jax.processing import preprocess_image
from tests.benchmarks.rivals.settings import PROMPT_TOKENS, Settings

# Of a common photo, resized by every engine's process with the same function.
PICTURE_SHAPE = (480, 640, 3)
# Below are `<s>`, `<pad>`, `</s>` and `<unk>`, which mean something to one engine or another.
_FIRST_ORDINARY_TOKEN = 4


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """One batch.

    The language model is measured on text alone: `source_ids` take the places of image and prompt.
    An engine that takes only tokens can then be compared on exactly the same numbers, and the work
    is the same, because the encoder sees vectors either way.

    Attributes:
        pictures: uint8[B, 480, 640, 3].
        pixel_values: float32[B, S, S, 3], standard normal.
        source_ids: int32[B, I + L], a token for every image token and for every prompt token.
        prompt_ids: int32[B, L], the last L of them: the prompt that goes with a real picture.
    """

    pictures: np.ndarray
    pixel_values: np.ndarray
    source_ids: np.ndarray
    prompt_ids: np.ndarray

    @property
    def batch(self) -> int:
        return self.source_ids.shape[0]


def make_inputs(config: Florence2Config, settings: Settings, batch: int) -> Inputs:
    """Equal for equal arguments, in every process."""
    rng = np.random.default_rng((settings.seed, batch))
    side = settings.image_size
    image_token, vocabulary = config.image_token_id, config.text.vocab_size
    if image_token >= _FIRST_ORDINARY_TOKEN:
        # transformers would take it for a picture's token.
        vocabulary = min(vocabulary, image_token)
    length = config.num_image_tokens(side, side) + PROMPT_TOKENS
    source_ids = rng.integers(_FIRST_ORDINARY_TOKEN, vocabulary, (batch, length), np.int32)
    return Inputs(
        pictures=rng.integers(0, 256, (batch, *PICTURE_SHAPE), np.uint8),
        pixel_values=rng.standard_normal((batch, side, side, 3), np.float32),
        source_ids=source_ids,
        prompt_ids=source_ids[:, -PROMPT_TOKENS:],
    )


def preprocess(pictures: np.ndarray, image_size: int) -> np.ndarray:
    """uint8[B, H, W, 3] pictures -> float32[B, S, S, 3] pixels: part of every end-to-end call."""
    size = (image_size, image_size)
    return np.stack([preprocess_image(picture, size=size) for picture in pictures])
