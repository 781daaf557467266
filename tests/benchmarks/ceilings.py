"""The measured rates of a machine, and the least time for the work of a model there."""

from __future__ import annotations

from dataclasses import dataclass

from florence_jax.config import Florence2Config
from florence_jax.model.flops import Work, token


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Measured rates of a machine: FLOP/s of a large matmul, bytes/s read."""

    flops_per_second: float
    bytes_per_second: float

    def seconds(self, work: Work) -> float:
        """The least time for `work`: computing and reading overlap, so the slower one decides."""
        return max(work.flops / self.flops_per_second, work.bytes / self.bytes_per_second)

    def to_json(self) -> dict[str, float]:
        return {
            "gflop_per_second": round(self.flops_per_second / 1e9, 2),
            "gb_per_second": round(self.bytes_per_second / 1e9, 2),
        }


def decoder_step(
    config: Florence2Config,
    *,
    batch: int,
    beams: int,
    encoder_tokens: int,
    position: int,
    item: int,
) -> Work:
    """One decoder step of `batch` images x `beams` rows; `item` is the size of a number.

    It reads the weights once, cross-attention keys and values once an image, and each beam's own
    cache.
    """
    text = config.text
    layer = 6 * text.d_model**2 + 2 * text.d_model * text.decoder_ffn_dim
    weights = text.decoder_layers * layer + text.vocab_size * text.d_model
    cached = batch * encoder_tokens + batch * beams * (position + 1)
    return Work(
        flops=batch * beams * token(config, encoder_tokens, position).flops,
        bytes=item * (weights + text.decoder_layers * 2 * cached * text.d_model),
    )
