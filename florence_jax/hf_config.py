"""The two `config.json` dialects of published Florence-2 checkpoints <-> the fields of our config.

The *original* repositories (microsoft/Florence-2-*) name the vision sizes `dim_embed` and put the
decoding settings into `text_config`; the *native* ones (florence-community/*, transformers' own
class) name them `embed_dim` and carry `image_token_id`. This module works on plain dicts;
`Florence2Config.from_hf` and `to_hf` are its callers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Dialect = Literal["original", "native"]

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
_VISION_OPTIONAL = (
    "drop_path_rate",
    "drop_path_per_block",  # this library's own
    "mlp_ratio",
    "qkv_bias",
    "in_channels",
)
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
# The reference classes' defaults for absent keys, where the published models have other values.
_TEXT_DEFAULTS = {"attention_dropout": 0.0, "activation_dropout": 0.0}
# What every Florence-2's tower has, and other DaViTs may not.
_FLORENCE_ONLY = {"channel_attn_v2": True, "pad_to_stride": False}
# Switches of the original config whose other value is a different model that nobody published.
_UNSUPPORTED_TEXT = {
    "normalize_before": False,
    "add_final_layer_norm": False,
    "add_bias_logits": False,
}


def config_warnings(config: Mapping[str, Any]) -> list[str]:
    """List what is odd but harmless in a published `config.json`, one sentence each.

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


def from_hf_dict(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Read a published `config.json` of either dialect.

    Returns:
        (fields, problems): the keywords of `Florence2Config`, with those of `DaViTConfig` and
        `BartConfig` under "vision" and "text"; and every missing key and unsupported value, one
        sentence each. Fields are complete only where there are no problems.
    """
    reader = _Reader(config)
    return reader.read(), reader.problems


def to_hf_dict(fields: Mapping[str, Any], dialect: Dialect) -> tuple[dict[str, Any], list[str]]:
    """Write the `config.json` of one dialect.

    Args:
        fields: `dataclasses.asdict` of a `Florence2Config`.
        dialect: "original" or "native".

    Returns:
        (config, problems): problems lists what the dialect cannot express, one sentence each.

    Raises:
        ValueError: there is no such dialect.
    """
    if dialect == "native":
        return _to_native(fields), _not_expressed(fields["vision"], dialect, _FLORENCE_ONLY)
    if dialect == "original":
        fixed = {"mlp_ratio": 4.0, "qkv_bias": True, "in_channels": 3} | _FLORENCE_ONLY
        return _to_original(fields), _not_expressed(fields["vision"], dialect, fixed)
    raise ValueError(f"dialect is {dialect!r}, expected 'original' or 'native'")


class _Reader:
    """Reads one `config.json` and collects every problem, so that all are reported at once."""

    def __init__(self, config: Mapping[str, Any]):
        self.config = config
        self.problems: list[str] = []

    def read(self) -> dict[str, Any]:
        vision = self._section("vision_config")
        text = self._section("text_config")
        original = "dim_embed" in vision
        vision_fields = {
            ours: self._take(vision, "vision_config", names[0 if original else 1])
            for ours, names in _VISION_KEYS.items()
        }
        vision_fields |= {key: vision[key] for key in _VISION_OPTIONAL if key in vision}
        text_fields = {key: self._take(text, "text_config", key) for key in _TEXT_REQUIRED}
        text_fields |= _TEXT_DEFAULTS
        text_fields |= {key: text[key] for key in _TEXT_OPTIONAL if text.get(key) is not None}
        if isinstance(text_fields.get("eos_token_id"), list):
            # Several end tokens are a setting of decoding; the first is the model's own.
            text_fields["eos_token_id"] = next(iter(text_fields["eos_token_id"]), None)
        self._check_supported(vision, text)
        image_positions, temporal_positions = self._positions(vision, original)
        return {
            "vision": {key: _frozen(value) for key, value in vision_fields.items()},
            "text": text_fields,
            "max_image_positions": image_positions,
            "max_temporal_positions": temporal_positions,
            "image_token_id": self.config.get("image_token_id", 51289),
        }

    def _section(self, name: str) -> Mapping[str, Any]:
        section = self.config.get(name)
        if not isinstance(section, Mapping):
            timm = self.config.get("architecture")
            self.problems.append(
                f"{name} is missing: is this the config.json of a Florence-2?"
                if not isinstance(timm, str)
                else f"{name} is missing: this is {timm}; load it with load_backbone or "
                "load_segmenter, convert it with --naming timm"
            )
            return {}
        return section

    def _take(self, section: Mapping[str, Any], name: str, key: str) -> Any:
        # An empty section was reported already; naming its every key would bury that.
        if key not in section and section:
            self.problems.append(f"{name}.{key} is missing")
        return section.get(key)

    def _positions(self, vision: Mapping[str, Any], original: bool) -> tuple[int, int]:
        if not original:
            return (
                vision.get("max_position_embeddings", 50),
                vision.get("max_temporal_embeddings", 100),
            )
        spatial = _mapping(vision.get("image_pos_embed"))
        temporal = _mapping(vision.get("visual_temporal_embedding"))
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
        for key, kind in (
            ("image_pos_embed", "learned_abs_2d"),
            ("visual_temporal_embedding", "COSINE"),
        ):
            found = _mapping(vision.get(key, {"type": kind})).get("type")
            expect(f"vision_config.{key}.type", found, kind)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _text_to_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
    return fields["text"] | {
        "activation_function": "gelu",
        "forced_eos_token_id": fields["text"]["eos_token_id"],
        "init_std": 0.02,
        "is_encoder_decoder": True,
        "num_hidden_layers": fields["text"]["encoder_layers"],
    }


def _vision_to_hf(fields: Mapping[str, Any], column: int) -> dict[str, Any]:
    vision = fields["vision"]
    named = {names[column]: vision[ours] for ours, names in _VISION_KEYS.items()}
    own = {"drop_path_per_block": True} if vision["drop_path_per_block"] else {}
    return (
        {key: list(v) if isinstance(v, tuple) else v for key, v in named.items()}
        | own
        | {
            "drop_path_rate": fields["vision"]["drop_path_rate"],
            "projection_dim": fields["text"]["d_model"],
        }
    )


def _top_to_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["Florence2ForConditionalGeneration"],
        "bos_token_id": fields["text"]["bos_token_id"],
        "eos_token_id": fields["text"]["eos_token_id"],
        "pad_token_id": fields["text"]["pad_token_id"],
        "is_encoder_decoder": True,
        "model_type": "florence2",
        "tie_word_embeddings": fields["tie_word_embeddings"],
    }


def _to_native(fields: Mapping[str, Any]) -> dict[str, Any]:
    vision = _vision_to_hf(fields, 1) | {
        "activation_function": "gelu",
        "in_channels": fields["vision"]["in_channels"],
        "max_position_embeddings": fields["max_image_positions"],
        "max_temporal_embeddings": fields["max_temporal_positions"],
        "mlp_ratio": fields["vision"]["mlp_ratio"],
        "model_type": "florence_vision",
        "qkv_bias": fields["vision"]["qkv_bias"],
    }
    text = _text_to_hf(fields) | {
        "model_type": "bart",
        "tie_word_embeddings": fields["tie_word_embeddings"],
    }
    return _top_to_hf(fields) | {
        "image_token_id": fields["image_token_id"],
        "text_config": text,
        "vision_config": vision,
    }


def _to_original(fields: Mapping[str, Any]) -> dict[str, Any]:
    vision = _vision_to_hf(fields, 0) | {
        "enable_checkpoint": False,
        "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
        "image_pos_embed": {
            "type": "learned_abs_2d",
            "max_pos_embeddings": fields["max_image_positions"],
        },
        "model_type": "davit",
        "visual_temporal_embedding": {
            "type": "COSINE",
            "max_temporal_embeddings": fields["max_temporal_positions"],
        },
    }
    text = _text_to_hf(fields) | _UNSUPPORTED_TEXT
    return _top_to_hf(fields) | {
        "ignore_index": -100,
        "projection_dim": fields["text"]["d_model"],
        "vocab_size": fields["text"]["vocab_size"],
        "text_config": text,
        "vision_config": vision,
    }


def _not_expressed(
    vision: Mapping[str, Any], dialect: Dialect, fixed: Mapping[str, Any]
) -> list[str]:
    return [
        f"vision.{name} is {vision[name]}; the {dialect} dialect has no key for it and means "
        f"{value}"
        for name, value in fixed.items()
        if vision[name] != value
    ]
