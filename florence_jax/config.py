"""Florence-2's configs: sizes of the image encoder and the encoder-decoder, and the presets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from florence_jax.hf_config import Dialect, from_hf_dict, to_hf_dict


class ConfigError(ValueError):
    """A config that this model cannot be built from; the message lists every problem found."""


@dataclass(frozen=True, kw_only=True)
class DaViTConfig:
    """Sizes of the DaViT image encoder (https://arxiv.org/abs/2204.03645); one entry per stage.

    Two switches tell Florence-2's tower from the paper's. `channel_attn_v2` scales channel
    attention by the number of tokens; False is the paper's form, see `ops.channel_attention`.
    `pad_to_stride` pads maps at their right and bottom before strided convolutions, for 2 x 2
    patches on maps of odd sizes; without it, what does not fill a patch is dropped.

    `drop_path_rate` is that of the last half block. It grows from 0 with every half of a block, as
    in the original code; `drop_path_per_block` gives both halves of a block the same rate and lets
    it grow with every block, as timm does.
    """

    embed_dims: tuple[int, ...] = (128, 256, 512, 1024)
    depths: tuple[int, ...] = (1, 1, 9, 1)
    num_heads: tuple[int, ...] = (4, 8, 16, 32)
    num_groups: tuple[int, ...] = (4, 8, 16, 32)
    patch_sizes: tuple[int, ...] = (7, 3, 3, 3)
    patch_strides: tuple[int, ...] = (4, 2, 2, 2)
    patch_paddings: tuple[int, ...] = (3, 1, 1, 1)
    patch_prenorm: tuple[bool, ...] = (False, True, True, True)
    window_size: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    in_channels: int = 3
    drop_path_rate: float = 0.1
    drop_path_per_block: bool = False
    channel_attn_v2: bool = True
    pad_to_stride: bool = False

    def __post_init__(self) -> None:
        raise_if(_mistyped(self), "DaViTConfig")
        problems = []
        stages = len(self.embed_dims)
        for name in (
            "depths",
            "num_heads",
            "num_groups",
            "patch_sizes",
            "patch_strides",
            "patch_paddings",
            "patch_prenorm",
        ):
            length = len(getattr(self, name))
            if length != stages:
                problems.append(f"{name} has {length} entries, embed_dims has {stages}")
        for divisor in ("num_heads", "num_groups"):
            for dim, count in zip(self.embed_dims, getattr(self, divisor), strict=False):
                if count < 1 or dim % count:
                    problems.append(
                        f"{divisor} entry {count} does not divide embed_dims entry {dim}"
                    )
        raise_if(problems, "DaViTConfig")

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the last feature map for an image of `height` x `width` pixels."""
        return self.grids(height, width)[-1]

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """(rows, columns) of each stage's feature map."""
        found, sides = [], (height, width)
        for size, stride, padding in zip(
            self.patch_sizes, self.patch_strides, self.patch_paddings, strict=True
        ):
            if self.pad_to_stride:
                sides = tuple(side + -side % stride for side in sides)
            sides = tuple((side + 2 * padding - size) // stride + 1 for side in sides)
            found.append(sides)
        return found


@dataclass(frozen=True, kw_only=True)
class BartConfig:
    """Sizes of the BART encoder-decoder (https://arxiv.org/abs/1910.13461)."""

    vocab_size: int = 51289
    d_model: int = 768
    encoder_layers: int = 6
    decoder_layers: int = 6
    encoder_attention_heads: int = 12
    decoder_attention_heads: int = 12
    encoder_ffn_dim: int = 3072
    decoder_ffn_dim: int = 3072
    max_position_embeddings: int = 1024
    scale_embedding: bool = False
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    bos_token_id: int = 0
    pad_token_id: int = 1
    eos_token_id: int = 2
    decoder_start_token_id: int = 2

    def __post_init__(self) -> None:
        raise_if(_mistyped(self), "BartConfig")
        problems = []
        for side in ("encoder", "decoder"):
            heads = getattr(self, f"{side}_attention_heads")
            if heads < 1 or self.d_model % heads:
                problems.append(
                    f"{side}_attention_heads {heads} does not divide d_model {self.d_model}"
                )
        for name in ("bos_token_id", "pad_token_id", "eos_token_id", "decoder_start_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                problems.append(
                    f"{name} is {getattr(self, name)}, outside the vocabulary of {self.vocab_size}"
                )
        raise_if(problems, "BartConfig")


@dataclass(frozen=True, kw_only=True)
class Florence2Config:
    """A Florence-2: image encoder, projector and encoder-decoder (https://arxiv.org/abs/2311.06242).

    `tie_word_embeddings` and `final_logits_bias` describe a checkpoint's weights: False / True only
    where its `lm_head` really differs from the token table, or its output bias is not zero.
    """

    vision: DaViTConfig = field(default_factory=DaViTConfig)
    text: BartConfig = field(default_factory=BartConfig)
    max_image_positions: int = 50
    max_temporal_positions: int = 100
    image_token_id: int = 51289
    tie_word_embeddings: bool = True
    final_logits_bias: bool = False

    def __post_init__(self) -> None:
        raise_if(_mistyped(self), "Florence2Config")

    def num_image_tokens(self, height: int, width: int, frames: int = 1) -> int:
        """Tokens of `frames` images of `height` x `width` pixels: 577 for one of 768 x 768.

        Raises:
            ValueError: the image is too small, or its grid does not fit the learned position table.
        """
        rows, columns = self.vision.grid(height, width)
        limit = self.max_image_positions
        if rows < 1 or columns < 1:
            raise ValueError(f"an image of {height} x {width} pixels is too small for this model")
        if rows > limit or columns > limit:
            raise ValueError(
                f"an image of {height} x {width} pixels has a grid of {rows} x {columns} cells, "
                f"but the position table holds {limit} x {limit}: resize the image (the published "
                "models take at most 1600 pixels a side)"
            )
        if not 1 <= frames <= self.max_temporal_positions:
            raise ValueError(
                f"{frames} frames were given; the temporal table holds 1 to "
                f"{self.max_temporal_positions}"
            )
        return frames + rows * columns

    def describe(self) -> str:
        """The sizes that tell models apart, in a few words."""
        text = self.text
        return (
            f"Florence-2 of width {text.d_model}, {text.encoder_layers} encoder and "
            f"{text.decoder_layers} decoder layers, {text.vocab_size} tokens"
        )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Florence2Config:
        """Read a published `config.json` of either dialect.

        Raises:
            ConfigError: lists every missing key and every value that this model does not support.
        """
        fields, problems = from_hf_dict(config)
        raise_if(problems, "config.json")
        vision, text = DaViTConfig(**fields.pop("vision")), BartConfig(**fields.pop("text"))
        return cls(vision=vision, text=text, **fields)

    def to_hf(self, dialect: Dialect) -> dict[str, Any]:
        """Write the `config.json` of one dialect.

        Raises:
            ConfigError: lists what the dialect cannot express.
        """
        written, problems = to_hf_dict(dataclasses.asdict(self), dialect)
        raise_if(problems, f"a config for the {dialect} dialect")
        return written


def base() -> Florence2Config:
    """microsoft/Florence-2-base and -base-ft: 231 M parameters."""
    return Florence2Config()


def large() -> Florence2Config:
    """microsoft/Florence-2-large and -large-ft: 770 M parameters."""
    return Florence2Config(
        vision=DaViTConfig(
            embed_dims=(256, 512, 1024, 2048),
            num_heads=(8, 16, 32, 64),
            num_groups=(8, 16, 32, 64),
        ),
        text=BartConfig(
            d_model=1024,
            encoder_layers=12,
            decoder_layers=12,
            encoder_attention_heads=16,
            decoder_attention_heads=16,
            encoder_ffn_dim=4096,
            decoder_ffn_dim=4096,
        ),
    )


def large_4k() -> Florence2Config:
    """Large with 4,096 text positions, as in Florence-2-large's long-context derivatives."""
    config = large()
    text = dataclasses.replace(config.text, max_position_embeddings=4096)
    return dataclasses.replace(config, text=text)


def tiny() -> Florence2Config:
    """A Florence-2 small enough for tests and the offline demonstration; never published."""
    return Florence2Config(
        vision=DaViTConfig(
            embed_dims=(8, 16, 24, 32),
            depths=(1, 1, 2, 1),
            num_heads=(1, 2, 3, 4),
            num_groups=(2, 4, 3, 8),
        ),
        text=BartConfig(
            vocab_size=1285,
            d_model=24,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
        ),
        image_token_id=1284,
    )


PRESETS = {"base": base, "large": large, "large-4k": large_4k, "tiny": tiny}


def raise_if(problems: list[str], what: str) -> None:
    """Raise one ConfigError that lists all `problems`, if there are any."""
    if problems:
        raise ConfigError(f"{what} has {len(problems)} problem(s):\n  - " + "\n  - ".join(problems))


def _mistyped(config: Any) -> list[str]:
    """Problems with the types and ranges of a config's own fields, one sentence each."""
    problems = []
    for own in dataclasses.fields(config):
        value, kind = getattr(config, own.name), str(own.type)
        least = 0 if own.name.endswith("_id") or own.name == "patch_paddings" else 1
        if own.name == "drop_path_rate" or own.name.endswith("dropout"):
            right, expected = _is_number(value) and 0 <= value < 1, "a number within [0, 1)"
        elif kind == "int":
            right, expected = _is_int(value, least), f"an integer of at least {least}"
        elif kind == "float":
            right, expected = _is_number(value) and value > 0, "a number above 0"
        elif kind == "bool":
            right, expected = isinstance(value, bool), "true or false"
        elif kind == "tuple[int, ...]":
            right = isinstance(value, tuple) and value and all(_is_int(v, least) for v in value)
            expected = f"integers of at least {least}, one for each stage"
        elif kind == "tuple[bool, ...]":
            right = isinstance(value, tuple) and all(isinstance(v, bool) for v in value)
            expected = "true or false for each stage"
        else:  # a nested config, which has checked itself
            continue
        if not right:
            problems.append(f"{own.name} is {value!r}, expected {expected}")
    return problems


def _is_int(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
