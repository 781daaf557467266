"""`BackboneConfig`: sizes of a DaViT with its head, and the published ones under timm's names."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from florence_jax.config import ConfigError, DaViTConfig
from florence_jax.processing.image.crop import CropConfig


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """A DaViT and what stands on it.

    Attributes:
        vision: the tower.
        num_classes: outputs of the classifier; 0 for none.
        feature_norms: whether each stage's feature map has a layer norm of its own, as dense
            prediction heads are trained with.
        image: how images are preprocessed.
    """

    vision: DaViTConfig = field(default_factory=DaViTConfig)
    num_classes: int = 0
    feature_norms: bool = False
    image: CropConfig = field(default_factory=CropConfig)

    def __post_init__(self) -> None:
        if type(self.num_classes) is not int or self.num_classes < 0:
            raise ConfigError(f"num_classes is {self.num_classes!r}, expected an integer from 0")


def _tower(
    width: int, depths: tuple[int, ...] = (1, 1, 9, 1), *, florence: bool = False
) -> DaViTConfig:
    """A published tower whose first stage has `width` channels, by its kind."""
    dims = (width, 2 * width, 4 * width, 8 * width)
    heads = tuple(dim // 32 for dim in dims)
    return DaViTConfig(
        embed_dims=dims,
        depths=depths,
        num_heads=heads,
        num_groups=heads,
        patch_sizes=(7, 3, 3, 3) if florence else (7, 2, 2, 2),
        patch_paddings=(3, 1, 1, 1) if florence else (3, 0, 0, 0),
        window_size=12 if florence else 7,
        channel_attn_v2=florence,
        pad_to_stride=not florence,
    )


# Florence-2's own preprocessing.
FLORENCE_IMAGE = CropConfig(size=(768, 768), crop_pct=1.0, crop_mode="squash")

_TOWERS = {
    "davit_tiny": _tower(96, (1, 1, 3, 1)),
    "davit_small": _tower(96),
    "davit_base": _tower(128),
    "davit_large": _tower(192),
    "davit_huge": _tower(256),
    "davit_giant": _tower(384, (1, 1, 12, 3)),
    "davit_base_fl": _tower(128, florence=True),
    "davit_huge_fl": _tower(256, florence=True),
}
# The published models by timm's names.
PRESETS: dict[str, BackboneConfig] = {
    name: BackboneConfig(vision=tower, image=FLORENCE_IMAGE)
    if name.endswith("_fl")
    else BackboneConfig(vision=tower, num_classes=1000)
    for name, tower in _TOWERS.items()
}
# Where the weights of a name are, by tag; the first is the default.
PUBLISHED: dict[str, str] = {
    "davit_tiny.msft_in1k": "timm/davit_tiny.msft_in1k",
    "davit_small.msft_in1k": "timm/davit_small.msft_in1k",
    "davit_base.msft_in1k": "timm/davit_base.msft_in1k",
    "davit_base_fl.msft_florence2": "microsoft/Florence-2-base",
    "davit_huge_fl.msft_florence2": "microsoft/Florence-2-large",
}


def preset(name: str, *, num_classes: int | None = None) -> BackboneConfig:
    """The config of a published name, with or without its tag, and with `num_classes` if given.

    Raises:
        ConfigError: there is no such name.
    """
    base = name.partition(".")[0]
    if base not in PRESETS:
        raise ConfigError(f"{name!r} is no known backbone: expected one of {', '.join(PRESETS)}")
    config = PRESETS[base]
    return config if num_classes is None else dataclasses.replace(config, num_classes=num_classes)
