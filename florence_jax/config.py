"""What a Florence-2 is made of: frozen configs, published sizes, both `config.json` dialects.

Published checkpoints carry one of two dialects. The *original* repositories
(microsoft/Florence-2-*) name the vision sizes `dim_embed` and put the decoding settings into
`text_config`; the *native* ones (florence-community/*, transformers' own class) name them
`embed_dim` and carry `image_token_id`.
`Florence2Config.from_hf` reads both, `Florence2Config.to_hf` writes both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Dialect = Literal["original", "native"]


class ConfigError(ValueError):
    """A config that this model cannot be built from; the message lists every problem found."""


def _raise_if(problems: list[str], what: str) -> None:
    if problems:
        raise ConfigError(f"{what} has {len(problems)} problem(s):\n  - " + "\n  - ".join(problems))


@dataclass(frozen=True, kw_only=True)
class DaViTConfig:
    """Sizes of the DaViT image encoder (https://arxiv.org/abs/2204.03645); one entry per stage."""

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

    def __post_init__(self) -> None:
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
        if self.window_size < 1:
            problems.append(f"window_size is {self.window_size}, expected at least 1")
        if not 0.0 <= self.drop_path_rate < 1.0:
            problems.append(f"drop_path_rate is {self.drop_path_rate}, expected within [0, 1)")
        _raise_if(problems, "DaViTConfig")

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the last feature map for an image of `height` x `width` pixels."""
        for size, stride, padding in zip(
            self.patch_sizes, self.patch_strides, self.patch_paddings, strict=True
        ):
            height = (height + 2 * padding - size) // stride + 1
            width = (width + 2 * padding - size) // stride + 1
        return height, width


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
        _raise_if(problems, "BartConfig")


@dataclass(frozen=True, kw_only=True)
class Florence2Config:
    """A Florence-2: image encoder, projector and encoder-decoder (https://arxiv.org/abs/2311.06242).

    `tie_word_embeddings` and `final_logits_bias` describe a checkpoint's weights: False / True only
    where its `lm_head` really differs from the token table, or its output bias is not zero.
    """

    vision: DaViTConfig = DaViTConfig()
    text: BartConfig = BartConfig()
    max_image_positions: int = 50
    max_temporal_positions: int = 100
    image_token_id: int = 51289
    tie_word_embeddings: bool = True
    final_logits_bias: bool = False

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

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Florence2Config:
        """Read a published `config.json` of either dialect.

        Raises:
            ConfigError: lists every missing key and every value that this model does not support.
        """
        return _Reader(config).read()

    def to_hf(self, dialect: Dialect) -> dict[str, Any]:
        """Write the `config.json` of one dialect."""
        writer = {"native": _to_native, "original": _to_original}.get(dialect)
        if writer is None:
            raise ValueError(f"dialect is {dialect!r}, expected 'original' or 'native'")
        return writer(self)


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


def oddities(config: Mapping[str, Any]) -> list[str]:
    """Say what is odd but harmless in a published `config.json`, one sentence each.

    Many fine-tunes were saved with wrong top-level ids (bos 2, eos 1, pad 0); those in
    `text_config` are right.
    """
    found = []
    text = config.get("text_config") or {}
    vision = config.get("vision_config") or {}
    if not isinstance(text, Mapping) or not isinstance(vision, Mapping):
        return found
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "vocab_size"):
        top, inner = config.get(name), text.get(name)
        if top is not None and inner is not None and top != inner:
            found.append(
                f"top-level {name} is {top}, text_config says {inner}: text_config is used"
            )
    if "dim_embed" in vision and vision.get("model_type") != "davit":
        found.append(f"vision_config.model_type is {vision.get('model_type')!r} instead of 'davit'")
    if config.get("auto_map"):
        found.append("auto_map points to remote code, which is never run")
    return found


# The two dialects' names for the same vision field: ours -> (original, native).
_VISION_KEYS = {
    "embed_dims": ("dim_embed", "embed_dim"),
    "depths": ("depths", "depths"),
    "num_heads": ("num_heads", "num_heads"),
    "num_groups": ("num_groups", "num_groups"),
    "patch_sizes": ("patch_size", "patch_size"),
    "patch_strides": ("patch_stride", "patch_stride"),
    "patch_paddings": ("patch_padding", "patch_padding"),
    "patch_prenorm": ("patch_prenorm", "patch_prenorm"),
    "window_size": ("window_size", "window_size"),
}
# Absent from one dialect or from older files; the reference classes' defaults then hold.
_VISION_OPTIONAL = ("drop_path_rate", "mlp_ratio", "qkv_bias", "in_channels")
_TEXT_REQUIRED = (
    "vocab_size",
    "d_model",
    "encoder_layers",
    "decoder_layers",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "max_position_embeddings",
)
_TEXT_OPTIONAL = (
    "scale_embedding",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "bos_token_id",
    "pad_token_id",
    "eos_token_id",
    "decoder_start_token_id",
)
# Switches of the original config whose other value is a different model that nobody published.
_UNSUPPORTED_TEXT = {
    "normalize_before": False,
    "add_final_layer_norm": False,
    "add_bias_logits": False,
}


class _Reader:
    """Collects every problem of one `config.json` before raising, so that one look mends all."""

    def __init__(self, config: Mapping[str, Any]):
        self.config = config
        self.problems: list[str] = []

    def read(self) -> Florence2Config:
        vision = self._section("vision_config")
        text = self._section("text_config")
        original = "dim_embed" in vision
        vision_fields = {
            ours: self._take(vision, "vision_config", names[0 if original else 1])
            for ours, names in _VISION_KEYS.items()
        }
        vision_fields |= {key: vision[key] for key in _VISION_OPTIONAL if key in vision}
        text_fields = {key: self._take(text, "text_config", key) for key in _TEXT_REQUIRED}
        text_fields |= {key: text[key] for key in _TEXT_OPTIONAL if text.get(key) is not None}
        self._check_supported(vision, text)
        image_positions, temporal_positions = self._positions(vision, original)
        _raise_if(self.problems, "config.json")
        try:
            return Florence2Config(
                vision=DaViTConfig(**{key: _frozen(value) for key, value in vision_fields.items()}),
                text=BartConfig(**text_fields),
                max_image_positions=image_positions,
                max_temporal_positions=temporal_positions,
                image_token_id=self.config.get("image_token_id", 51289),
            )
        except TypeError as error:
            raise ConfigError(f"config.json holds a value of the wrong type: {error}") from error

    def _section(self, name: str) -> Mapping[str, Any]:
        section = self.config.get(name)
        if not isinstance(section, Mapping):
            self.problems.append(f"{name} is missing: is this the config.json of a Florence-2?")
            return {}
        return section

    def _take(self, section: Mapping[str, Any], name: str, key: str) -> Any:
        # An empty section was reported already; its every key would only bury that.
        if key not in section and section:
            self.problems.append(f"{name}.{key} is missing")
        return section.get(key)

    def _positions(self, vision: Mapping[str, Any], original: bool) -> tuple[int, int]:
        if not original:
            return (
                vision.get("max_position_embeddings", 50),
                vision.get("max_temporal_embeddings", 100),
            )
        spatial = vision.get("image_pos_embed") or {}
        temporal = vision.get("visual_temporal_embedding") or {}
        return spatial.get("max_pos_embeddings", 50), temporal.get("max_temporal_embeddings", 100)

    def _check_supported(self, vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
        def expect(name: str, value: Any, expected: Any) -> None:
            if value != expected:
                self.problems.append(f"{name} is {value!r}; only {expected!r} is supported")

        for section, name in ((text, "text_config"), (vision, "vision_config")):
            expect(
                f"{name}.activation_function", section.get("activation_function", "gelu"), "gelu"
            )
        for key, expected in _UNSUPPORTED_TEXT.items():
            expect(f"text_config.{key}", text.get(key, expected), expected)
        source = vision.get("image_feature_source", ["spatial_avg_pool", "temporal_avg_pool"])
        expect(
            "vision_config.image_feature_source", source, ["spatial_avg_pool", "temporal_avg_pool"]
        )
        spatial = vision.get("image_pos_embed", {"type": "learned_abs_2d"}) or {}
        expect("vision_config.image_pos_embed.type", spatial.get("type"), "learned_abs_2d")
        temporal = vision.get("visual_temporal_embedding", {"type": "COSINE"}) or {}
        expect("vision_config.visual_temporal_embedding.type", temporal.get("type"), "COSINE")


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _text_to_hf(config: Florence2Config) -> dict[str, Any]:
    return dataclasses.asdict(config.text) | {
        "activation_function": "gelu",
        "forced_eos_token_id": config.text.eos_token_id,
        "init_std": 0.02,
        "is_encoder_decoder": True,
        "num_hidden_layers": config.text.encoder_layers,
    }


def _vision_to_hf(config: Florence2Config, column: int) -> dict[str, Any]:
    vision = dataclasses.asdict(config.vision)
    named = {names[column]: vision[ours] for ours, names in _VISION_KEYS.items()}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in named.items()} | {
        "drop_path_rate": config.vision.drop_path_rate,
        "projection_dim": config.text.d_model,
    }


def _top_to_hf(config: Florence2Config) -> dict[str, Any]:
    return {
        "architectures": ["Florence2ForConditionalGeneration"],
        "bos_token_id": config.text.bos_token_id,
        "eos_token_id": config.text.eos_token_id,
        "pad_token_id": config.text.pad_token_id,
        "is_encoder_decoder": True,
        "model_type": "florence2",
        "tie_word_embeddings": config.tie_word_embeddings,
    }


def _to_native(config: Florence2Config) -> dict[str, Any]:
    vision = _vision_to_hf(config, 1) | {
        "activation_function": "gelu",
        "in_channels": config.vision.in_channels,
        "max_position_embeddings": config.max_image_positions,
        "max_temporal_embeddings": config.max_temporal_positions,
        "mlp_ratio": config.vision.mlp_ratio,
        "model_type": "florence_vision",
        "qkv_bias": config.vision.qkv_bias,
    }
    text = _text_to_hf(config) | {
        "model_type": "bart",
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    return _top_to_hf(config) | {
        "image_token_id": config.image_token_id,
        "text_config": text,
        "vision_config": vision,
    }


def _to_original(config: Florence2Config) -> dict[str, Any]:
    unwritable = {
        "mlp_ratio": (config.vision.mlp_ratio, 4.0),
        "qkv_bias": (config.vision.qkv_bias, True),
        "in_channels": (config.vision.in_channels, 3),
    }
    _raise_if(
        [
            f"vision.{name} is {value}; the original dialect has no key for it and means {fixed}"
            for name, (value, fixed) in unwritable.items()
            if value != fixed
        ],
        "a config for the original dialect",
    )
    vision = _vision_to_hf(config, 0) | {
        "enable_checkpoint": False,
        "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
        "image_pos_embed": {
            "type": "learned_abs_2d",
            "max_pos_embeddings": config.max_image_positions,
        },
        "model_type": "davit",
        "visual_temporal_embedding": {
            "type": "COSINE",
            "max_temporal_embeddings": config.max_temporal_positions,
        },
    }
    text = _text_to_hf(config) | _UNSUPPORTED_TEXT
    return _top_to_hf(config) | {
        "ignore_index": -100,
        "projection_dim": config.text.d_model,
        "vocab_size": config.text.vocab_size,
        "text_config": text,
        "vision_config": vision,
    }
