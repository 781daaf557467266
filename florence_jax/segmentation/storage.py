"""`save_segmenter` and `load_segmenter`: config.json and model.safetensors, as of a backbone."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from florence_jax.adapters import resolve_model
from florence_jax.backbone.load import layout_of
from florence_jax.backbone.timm_config import from_timm, has_named_blocks, is_timm_config, to_timm
from florence_jax.checkpoint import CheckpointError
from florence_jax.checkpoint.load import checked_dtype, read_sources
from florence_jax.checkpoint.param_tree import flatten, unflatten
from florence_jax.checkpoint.plan import LazyTensor, Source
from florence_jax.checkpoint.pytorch.save import save_tensors
from florence_jax.checkpoint.pytorch.tower_file import match_tensors
from florence_jax.checkpoint.pytorch.tower_names import tower_transform
from florence_jax.checkpoint.pytorch.weights import open_weights
from florence_jax.checkpoint.repository import (
    checkpoint_directory,
    find_weights,
    read_json_object,
)
from florence_jax.config import ConfigError
from florence_jax.inference.load_sharded import DEFAULT_RULES, MeshLike, RulesLike, to_mesh
from florence_jax.matmul_precision import MatmulPrecision, check_matmul_precision
from florence_jax.model.handle import Params, structure
from florence_jax.model.layers import INIT_STD
from florence_jax.segmentation.names import segmenter_name
from florence_jax.segmentation.segmenter import Segmenter, SegmenterConfig
from florence_jax.sharding import ParamSharding

_ARCHITECTURE = "upernet"
# Fields of `SegmenterConfig` by their names in config.json, where a pyramid's sizes are a list.
_SIZES = ("num_classes", "hidden_dim", "pool_sizes", "auxiliary_dim", "auxiliary_weight")
# Counts of training steps that torch keeps beside a batch norm's statistics.
_COUNTS = ".num_batches_tracked"


def save_segmenter(
    directory: str | Path,
    config: SegmenterConfig,
    params: Params,
    *,
    label_names: Sequence[str] = (),
    overwrite: bool = False,
) -> None:
    """Write model.safetensors, with transformers' names of UperNet's heads, and config.json.

    Args:
        directory: the directory to write; it appears as a whole when it is complete.
        config: the segmenter's.
        params: its parameters, which keep their dtypes.
        label_names: names of the classes.
        overwrite: replace an existing checkpoint.

    Raises:
        CheckpointError: the directory cannot be written.
        ConfigError: timm has no DaViT of these sizes.
    """
    settings = segmenter_settings(config)
    if label_names:
        settings["label_names"] = list(label_names)
    named = has_named_blocks(config.backbone.vision)
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in flatten(params):
        array = np.asarray(leaf)
        name = segmenter_name(path, named_blocks=named)
        tensors[name] = np.ascontiguousarray(tower_transform(path, array.shape).to_torch(array))
    with checkpoint_directory(Path(directory).expanduser(), overwrite=overwrite) as new:
        (new / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        save_tensors(tensors, new / "model.safetensors", {"format": "pt"})


def load_segmenter(
    source: str | Path,
    dtype: str = "float32",
    *,
    num_classes: int | None = None,
    seed: int = 0,
    mesh: MeshLike | None = None,
    rules: RulesLike = DEFAULT_RULES,
    matmul_precision: MatmulPrecision = "highest",
    revision: str | None = None,
) -> tuple[Segmenter, Params]:
    """A segmentation network that `save_segmenter` or a run wrote: the handle and its parameters.

    Args:
        source: a directory or hub id.
        dtype: "float32", "bfloat16" or "float16", for weights and activations.
        num_classes: classes of a pixel. With another number than the stored one, both heads' last
            layers are left out with a warning, and new ones start untrained.
        seed: of untrained parameters.
        mesh, rules, matmul_precision, revision: as for `florence_jax.load_backbone`.

    Raises:
        CheckpointError, ConfigError: what is missing or wrong, and what to do.
    """
    checked_dtype(dtype)
    check_matmul_precision(matmul_precision)
    directory = resolve_model(source, revision)
    stored = read_segmenter_config(directory)
    config = stored
    if num_classes is not None and num_classes != stored.num_classes:
        config = dataclasses.replace(stored, num_classes=num_classes)
        warnings.warn(left_out_layers(source, stored, num_classes), stacklevel=2)
    layout = None if mesh is None else layout_of(segmenter_shapes(config), mesh, rules)
    params = read_segmenter(directory, stored, config, dtype, layout=layout, seed=seed)
    handle = Segmenter(config=config, dtype=dtype, matmul_precision=matmul_precision, layout=layout)
    return handle, params if layout is None else to_mesh(params, layout)


def left_out_layers(source: str | Path, stored: SegmenterConfig, num_classes: int) -> str:
    """The sentence on last layers of another number of classes."""
    return (
        f"{source} has last layers of {stored.num_classes} classes: they are left out, and those "
        f"of {num_classes} start untrained"
    )


def segmenter_settings(config: SegmenterConfig) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        ConfigError: timm has no DaViT of these sizes.
    """
    backbone = dataclasses.replace(config.backbone, feature_norms=False, num_classes=0)
    sizes = {name: getattr(config, name) for name in _SIZES}
    return {
        "architecture": _ARCHITECTURE,
        **sizes,
        "pool_sizes": list(config.pool_sizes),
        "feature_norms": config.backbone.feature_norms,
        "backbone": to_timm(backbone),
    }


def is_segmenter(directory: Path) -> bool:
    """Whether a directory holds a segmentation network."""
    settings = read_json_object(directory, "config.json")
    return settings is not None and settings.get("architecture") == _ARCHITECTURE


def read_segmenter_config(directory: Path) -> SegmenterConfig:
    """The sizes of a stored segmentation network.

    Raises:
        CheckpointError: it is none, or its config.json is incomplete.
        ConfigError: sizes that do not fit.
    """
    settings = read_json_object(directory, "config.json")
    if settings is None or settings.get("architecture") != _ARCHITECTURE:
        raise CheckpointError(
            f"{directory} holds no segmentation network: expected a config.json with architecture "
            f"{_ARCHITECTURE!r}, as save_segmenter and runs of train/recipes/segment.py write it. "
            "For a backbone alone, use load_backbone and start_from_backbone"
        )
    missing = [name for name in (*_SIZES, "feature_norms", "backbone") if name not in settings]
    if missing or not is_timm_config(settings["backbone"]):
        raise CheckpointError(
            f"{directory / 'config.json'} lacks {', '.join(missing) or 'a DaViT as backbone'}"
        )
    backbone = dataclasses.replace(
        from_timm(settings["backbone"]), feature_norms=bool(settings["feature_norms"])
    )
    sizes = {name: settings[name] for name in _SIZES}
    try:
        sizes["pool_sizes"] = tuple(sizes["pool_sizes"])
        return SegmenterConfig(backbone=backbone, **sizes)
    except TypeError as error:
        raise ConfigError(f"{directory / 'config.json'}: {error}") from error


def read_segmenter(
    directory: Path,
    stored: SegmenterConfig,
    config: SegmenterConfig,
    dtype: str | None,
    *,
    layout: ParamSharding | None = None,
    seed: int = 0,
) -> Params:
    """Read the parameters of `config`, in their true shapes.

    Args:
        directory: holds the weights.
        stored: what they belong to.
        config: what to fill, which differs in the number of classes alone.
        dtype: of all parameters; None keeps each tensor's own.
        layout: where they go on a mesh.
        seed: of last layers that are not stored.

    Raises:
        CheckpointError: tensors are missing, unexpected or of another shape.
    """
    named = has_named_blocks(stored.backbone.vision)
    tensors = {
        tensor.name: tensor
        for tensor in open_weights(find_weights(directory))
        if not tensor.name.endswith(_COUNTS)
    }
    sources = _matched(directory, tensors, segmenter_shapes(stored), named)
    shapes = segmenter_shapes(config)
    kept = {path: one for path, one in sources.items() if one.shape == shapes[path]}
    there = dict(
        flatten(read_sources(kept, dtype, None if layout is None else layout.true_sharding))
    )
    rng = np.random.default_rng(seed)
    for path in sorted(shapes.keys() - there.keys()):
        shape = shapes[path]
        drawn = rng.normal(0.0, INIT_STD, shape) if path.endswith("/kernel") else np.zeros(shape)
        there[path] = jax.numpy.asarray(drawn, dtype or "float32")
    return unflatten(there)


def segmenter_shapes(config: SegmenterConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter."""
    tree = structure(Segmenter(config=config))[1]
    return {path: leaf.shape for path, leaf in flatten(tree)}


def _matched(
    directory: Path,
    tensors: Mapping[str, LazyTensor],
    shapes: Mapping[str, tuple[int, ...]],
    named_blocks: bool,
) -> dict[str, Source]:
    if not any(name.startswith("decode_head.") for name in tensors):
        raise CheckpointError(
            f"{directory} has no tensors of a decode_head: it is a backbone without a segmentation "
            "head; load it with load_backbone, and add heads with start_from_backbone"
        )
    return match_tensors(
        tensors,
        shapes,
        lambda path: segmenter_name(path, named_blocks=named_blocks),
        label=str(directory),
        needed=lambda path: True,
    )
