"""Names of UperNet's tensors in transformers, with timm's of a DaViT under `backbone`."""

from __future__ import annotations

import re

from florence_jax.checkpoint.pytorch.tower_names import TowerStyle, tower_name

_HEADS = (
    (r"decode_head/pools/(\d+)", r"decode_head.psp_modules.\1.1"),
    (r"decode_head/bottleneck", r"decode_head.bottleneck"),
    (r"decode_head/laterals/(\d+)", r"decode_head.lateral_convs.\1"),
    (r"decode_head/pyramid/(\d+)", r"decode_head.fpn_convs.\1"),
    (r"decode_head/fusion", r"decode_head.fpn_bottleneck"),
    (r"auxiliary_head/hidden", r"auxiliary_head.convs.0"),
)
_PARTS = {"conv": "conv", "norm": "batch_norm"}
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def segmenter_name(path: str, *, named_blocks: bool) -> str:
    """The name of the tensor that fills parameter `path` of a `Segmenter`.

    Norms of feature maps, which neither library has, are `backbone.norms.0` and so on.
    """
    style = TowerStyle("timm", named_blocks, "backbone.")
    if (name := tower_name(path, style)) is not None:
        return name
    *modules, leaf = path.split("/")
    module = "/".join(modules)
    if found := re.fullmatch(r"norms/(\d+)", module):
        return f"backbone.norms.{found[1]}.{_LEAVES[leaf]}"
    if found := re.fullmatch(r"(decode|auxiliary)_head/classifier/conv", module):
        return f"{found[1]}_head.classifier.{_LEAVES[leaf]}"
    for ours, theirs in _HEADS:
        if found := re.fullmatch(f"{ours}/(conv|norm)", module):
            head = re.sub(ours, theirs, module.rpartition("/")[0])
            return f"{head}.{_PARTS[found[found.lastindex or 1]]}.{_LEAVES[leaf]}"
    raise AssertionError(f"no name for the parameter {path!r}")
