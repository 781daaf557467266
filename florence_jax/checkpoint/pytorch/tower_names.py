"""Names of a bare DaViT's tensors in timm and in the original DaViT repository.

The Florence-2 namings are in `key_map`. timm calls the two halves of a block "0" and "1", or
"spatial_block" and "channel_block" in its Florence-2 towers.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from florence_jax.checkpoint.pytorch.key_map import CONV, LINEAR, VECTOR, Shape, Transform

TowerNaming = Literal["timm", "davit"]

# Our module, timm's, the original's.
_BLOCK = {
    "conv1": ("cpe1.proj", "cpe.0.proj"),
    "norm1": ("norm1", "norm1"),
    "window_attn/qkv": ("attn.qkv", "attn.qkv"),
    "window_attn/proj": ("attn.proj", "attn.proj"),
    "channel_attn/qkv": ("attn.qkv", "attn.qkv"),
    "channel_attn/proj": ("attn.proj", "attn.proj"),
    "conv2": ("cpe2.proj", "cpe.1.proj"),
    "norm2": ("norm2", "norm2"),
    "mlp/fc1": ("mlp.fc1", "mlp.fc1"),
    "mlp/fc2": ("mlp.fc2", "mlp.fc2"),
}
_HEAD = {"head/norm": ("head.norm", "norms"), "head/fc": ("head.fc", "head")}
_HALVES = {"spatial": ("0", "spatial_block"), "channel": ("1", "channel_block")}
_EMBED = re.compile(r"vision_tower/stages/(\d+)/embed/(conv|norm)")
_IN_BLOCK = re.compile(r"vision_tower/stages/(\d+)/blocks/(\d+)/(spatial|channel)/(.+)")
# The first convolution, by which a file is recognised.
_STEMS: Mapping[TowerNaming, str] = {
    "timm": "stem.conv.weight",
    "davit": "patch_embeds.0.proj.weight",
}


class TowerStyle(NamedTuple):
    """How the tensors of one file are named.

    Attributes:
        naming: "timm", or "davit" for the original repository.
        named_blocks: in timm's, whether halves of a block have names instead of numbers.
        prefix: in front of every name.
    """

    naming: TowerNaming
    named_blocks: bool = False
    prefix: str = ""


def find_style(names: Iterable[str]) -> TowerStyle | None:
    """The style of a file with tensors of these names; None where it is no bare DaViT's."""
    names = list(names)
    for naming, stem in _STEMS.items():
        for name in names:
            prefix = name.removesuffix(stem)
            if name.endswith(stem) and (not prefix or prefix.endswith(".")):
                named = any(".spatial_block." in other for other in names)
                return TowerStyle(naming, naming == "timm" and named, prefix)
    return None


def tower_name(path: str, style: TowerStyle) -> str | None:
    """The name of the tensor that fills parameter `path`; None where that code has no such tensor.

    Paths are those of `florence_jax.backbone`: "vision_tower/stages/0/embed/conv/kernel".
    """
    module, _, leaf = path.rpartition("/")
    torch_module = _module_name(module, style)
    if torch_module is None:
        return None
    return f"{style.prefix}{torch_module}.{'bias' if leaf == 'bias' else 'weight'}"


def tower_transform(path: str, shape: Shape) -> Transform:
    """The change of layout from torch's tensor to parameter `path` of `shape`."""
    if path.endswith("/kernel"):
        return CONV if len(shape) == 4 else LINEAR
    return VECTOR


def _module_name(module: str, style: TowerStyle) -> str | None:
    timm = style.naming == "timm"
    if found := _EMBED.fullmatch(module):
        stage, part = found.groups()
        if not timm:
            return f"patch_embeds.{stage}.{'proj' if part == 'conv' else part}"
        return f"stem.{part}" if stage == "0" else f"stages.{stage}.downsample.{part}"
    if found := _IN_BLOCK.fullmatch(module):
        stage, block, half, inner = found.groups()
        side = _HALVES[half][style.named_blocks]
        blocks = f"stages.{stage}.blocks" if timm else f"main_blocks.{stage}"
        return f"{blocks}.{block}.{side}.{_BLOCK[inner][not timm]}"
    return _HEAD[module][not timm] if module in _HEAD else None
