"""timm's `config.json`, as its directories on the hub have it <-> our config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from PIL import Image

from florence_jax.backbone.config import PRESETS, BackboneConfig, preset
from florence_jax.config import ConfigError, DaViTConfig
from florence_jax.processing.image.crop import CropConfig

# timm's model arguments that have our meaning, and our names.
_ARGUMENTS = {
    "depths": "depths",
    "embed_dims": "embed_dims",
    "num_heads": "num_heads",
    "window_size": "window_size",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "channel_attn_v2": "channel_attn_v2",
    "in_chans": "in_channels",
}
# Those that have one value in every DaViT that this library builds.
_FIXED: dict[str, Any] = {
    "attn_types": ["spatial", "channel"],
    "cpe_act": False,
    "ffn": True,
    "global_pool": "avg",
    "head_norm_first": False,
    "norm_eps": 1e-5,
    "norm_layer": "layernorm2d",
    "norm_layer_cl": "layernorm",
}
# Our fields that are no arguments of timm's models.
_UNTOLD = ("drop_path_rate", "drop_path_per_block")
# Those that do not change the network, or are read elsewhere.
_IGNORED = dict.fromkeys(
    ("down_kernel_size", "drop_path_rate", "drop_rate", "img_size", "named_blocks", "num_classes")
)


def is_timm_config(config: Mapping[str, Any] | None) -> bool:
    """Whether a config.json is that of a DaViT of timm's."""
    return config is not None and str(config.get("architecture", "")).startswith("davit")


def from_timm(config: Mapping[str, Any]) -> BackboneConfig:
    """Read timm's config.json.

    Raises:
        ConfigError: an architecture or argument that this library does not support.
    """
    base = preset(str(config["architecture"]))
    arguments = _object(config, "model_args")
    pretrained = _object(config, "pretrained_cfg") or config
    changes: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in _ARGUMENTS:
            changes[_ARGUMENTS[name]] = tuple(value) if isinstance(value, list) else value
        elif name in _FIXED and value != _FIXED[name]:
            raise ConfigError(
                f"timm's model argument {name} is {value!r}; only {_FIXED[name]!r} is supported"
            )
        elif name not in _FIXED | _IGNORED:
            raise ConfigError(f"timm's model argument {name}={value!r} is not supported")
    if "mlp_ratio" in changes and isinstance(changes["mlp_ratio"], int):
        changes["mlp_ratio"] = float(changes["mlp_ratio"])
    if "num_heads" in changes:
        changes["num_groups"] = changes["num_heads"]
    stages = len(changes.get("embed_dims", base.vision.embed_dims))
    kernel = arguments.get("down_kernel_size", base.vision.patch_sizes[-1])
    vision = dataclasses.replace(base.vision, **_downsampling(kernel, stages), **changes)
    classes = config.get("num_classes", base.num_classes)
    return BackboneConfig(vision=vision, num_classes=classes, image=_image(pretrained, base.image))


def label_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes in timm's config.json, in order; empty where it has none."""
    pretrained = _object(config, "pretrained_cfg")
    names = config.get("label_names") or pretrained.get("label_names") or ()
    if not isinstance(names, list | tuple) or not all(isinstance(one, str) for one in names):
        raise ConfigError(f"label_names is {names!r:.100}, expected a list of texts")
    return tuple(names)


def _object(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A field of config.json that is an object itself; empty where there is none."""
    value = config.get(name) or {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"timm's {name} is {value!r:.80}, expected an object of settings")
    return value


def to_timm(config: BackboneConfig) -> dict[str, Any]:
    """Write timm's config.json.

    Raises:
        ConfigError: timm has no such model.
    """
    vision = config.vision
    kernel = vision.patch_sizes[-1]
    if not _is_expressible(vision) or config.feature_norms:
        raise ConfigError(
            "timm has no DaViT with these patches, groups or norms of feature maps: "
            f"{vision}, feature_norms={config.feature_norms}"
        )
    architecture = _architecture(vision)
    base = preset(architecture).vision
    arguments: dict[str, Any] = {}
    for name, ours in _ARGUMENTS.items():
        value = getattr(vision, ours)
        if value != getattr(base, ours):
            arguments[name] = list(value) if isinstance(value, tuple) else value
    if kernel != base.patch_sizes[-1]:
        arguments["down_kernel_size"] = kernel
    image = config.image
    return {
        "architecture": architecture,
        "num_classes": config.num_classes,
        "num_features": vision.embed_dims[-1],
        "global_pool": "avg",
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "florence_jax",
            "custom_load": False,
            "input_size": [vision.in_channels, *image.size],
            "fixed_input_size": False,
            "interpolation": Image.Resampling(image.resample).name.lower(),
            "crop_pct": image.crop_pct,
            "crop_mode": image.crop_mode,
            "mean": list(image.mean),
            "std": list(image.std),
            "num_classes": config.num_classes,
            "pool_size": list(vision.grid(*image.size)),
            "first_conv": "stem.conv",
            "classifier": "head.fc",
        },
    }


def _is_expressible(vision: DaViTConfig) -> bool:
    kernel = vision.patch_sizes[-1]
    if kernel != 2 and (kernel < 3 or kernel % 2 == 0):
        return False
    patches = _downsampling(kernel, len(vision.embed_dims))
    return vision == dataclasses.replace(vision, num_groups=vision.num_heads, **patches)


def has_named_blocks(vision: DaViTConfig) -> bool:
    """Whether the halves of a block have names in timm's model, as in Florence-2's towers."""
    return _architecture(vision).endswith("_fl")


def _architecture(vision: DaViTConfig) -> str:
    """The model of these sizes; another of its kind, for arguments to change, if there is none."""
    for name, config in PRESETS.items():
        same = {field: getattr(vision, field) for field in _UNTOLD}
        if vision == dataclasses.replace(config.vision, **same):
            return name
    return "davit_base_fl" if vision.patch_sizes[-1] == 3 else "davit_tiny"


def _downsampling(kernel: Any, stages: int) -> dict[str, Any]:
    """Patches of a tower whose maps are halved by `kernel` x `kernel` convolutions."""
    if type(kernel) is not int or (kernel != 2 and kernel % 2 == 0) or kernel < 2:
        raise ConfigError(f"timm's down_kernel_size is {kernel!r}, expected 2 or an odd number")
    even, rest = kernel == 2, stages - 1
    return {
        "patch_sizes": (7, *[kernel] * rest),
        "patch_strides": (4, *[2] * rest),
        "patch_paddings": (3, *[0 if even else kernel // 2] * rest),
        "patch_prenorm": (False, *[True] * rest),
        "pad_to_stride": even,
    }


def _image(pretrained: Mapping[str, Any], base: CropConfig) -> CropConfig:
    size = pretrained.get("input_size", (3, *base.size))
    if not isinstance(size, list | tuple) or len(size) != 3:
        raise ConfigError(f"input_size is {size!r:.80}, expected [channels, height, width]")
    name = str(pretrained.get("interpolation", "bicubic")).upper()
    if name not in Image.Resampling.__members__:
        raise ConfigError(f"interpolation is {name.lower()!r}, expected one of PIL's filters")
    try:
        return CropConfig(
            size=(size[1], size[2]),
            crop_pct=pretrained.get("crop_pct", base.crop_pct),
            crop_mode=pretrained.get("crop_mode", base.crop_mode),
            mean=tuple(pretrained.get("mean", base.mean)),
            std=tuple(pretrained.get("std", base.std)),
            resample=int(Image.Resampling[name]),
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"timm's pretrained_cfg: {error}") from error
