"""Write a backbone as a directory that timm loads with every tensor in its place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from florence_jax.backbone.config import BackboneConfig
from florence_jax.backbone.load import find_weights, read_backbone
from florence_jax.backbone.timm_config import has_named_blocks, to_timm
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.checkpoint.pytorch.save import save_tensors
from florence_jax.checkpoint.pytorch.tower_names import TowerStyle, tower_name, tower_transform
from florence_jax.checkpoint.repository import checkpoint_directory
from florence_jax.model.handle import Params
from florence_jax.runtime.atomic_dir import check_apart


class Written(NamedTuple):
    """What was written: the config and the tensors by their names."""

    config: BackboneConfig
    tensors: dict[str, np.ndarray]


def save_backbone(
    directory: str | Path,
    config: BackboneConfig,
    params: Params,
    *,
    label_names: Sequence[str] = (),
    overwrite: bool = False,
) -> Written:
    """Write model.safetensors and config.json as timm does; parameters keep their dtypes.

    `timm.create_model("local-dir:DIRECTORY", pretrained=True)` and `load_backbone` read it.

    Args:
        directory: the directory to write; it appears as a whole when it is complete.
        config: the backbone's.
        params: its parameters.
        label_names: names of the classes, which timm keeps in config.json too.
        overwrite: replace an existing checkpoint.

    Raises:
        CheckpointError: the directory cannot be written.
        ConfigError: timm has no such model.
    """
    settings = to_timm(config)
    if label_names:
        settings["label_names"] = list(label_names)
    style = TowerStyle("timm", has_named_blocks(config.vision))
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in flatten(params):
        array = np.asarray(leaf)
        name = tower_name(path, style)
        assert name is not None  # to_timm has refused what timm has no place for
        tensors[name] = np.ascontiguousarray(tower_transform(path, array.shape).to_torch(array))
    with checkpoint_directory(Path(directory).expanduser(), overwrite=overwrite) as new:
        (new / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        save_tensors(tensors, new / "model.safetensors", {"format": "pt"})
    return Written(config, tensors)


def convert_to_timm(
    source: str | Path,
    destination: str | Path,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
) -> Written:
    """Convert a backbone's weights, or the tower of a Florence-2, to timm's format.

    Args:
        source: what `load_backbone` takes.
        destination: directory to write.
        dtype: "float32", "bfloat16" or "float16"; None keeps each tensor's own.
        revision: branch, tag or commit of a hub id.
        overwrite: replace an existing checkpoint.

    Raises:
        CheckpointError, ConfigError, ValueError: what is wrong, and what to do.
    """
    if Path(source).expanduser().exists():
        check_apart(Path(source).expanduser(), Path(destination))
    found = find_weights(source, revision=revision)
    params = read_backbone(found, found.config, dtype)
    return save_backbone(destination, found.config, params, overwrite=overwrite)
