"""What every engine is told: the same for all of them, sent to their processes as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from florence_jax.config import Florence2Config

Platform = Literal["cpu", "cuda", "tpu"]

NUM_BEAMS = 3
NO_REPEAT_NGRAM_SIZE = 3
# Of a prompt such as the captioning task's.
PROMPT_TOKENS = 13
# Of the short search that is taken off the long one, which leaves decoder steps alone: `<s>`, two
# free tokens and `</s>`.
START_TOKENS = 4
# What a user who sets no limit gets: the published position table.
LONG_LIMIT = 1024


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One machine, one model, one precision.

    Attributes:
        weights: directory with `model.safetensors` and `config.json` in the native naming.
        platform: where to compute.
        dtype: "float32", "bfloat16" or "float16", of weights and activations.
        threads: CPU threads of an engine, and processors that its process may run on.
        image_size: side of the square that pictures are resized to, in pixels.
        new_tokens: generated tokens of every answer, `<s>` and `</s>` included.
        seed: of the inputs.
        cache: directory where engines keep what they convert or export.
    """

    weights: str
    platform: Platform
    dtype: str
    threads: int
    image_size: int
    new_tokens: int
    seed: int
    cache: str

    @property
    def item_bytes(self) -> int:
        """Bytes of a number in `dtype`."""
        return 4 if self.dtype == "float32" else 2

    def model_config(self) -> Florence2Config:
        """The sizes, from `weights`."""
        config = Path(self.weights) / "config.json"
        return Florence2Config.from_hf(json.loads(config.read_text(encoding="utf-8")))
