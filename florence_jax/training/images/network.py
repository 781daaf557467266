"""The image network that a run trains: its sizes, the file that keeps them, first parameters."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from florence_jax.adapters import resolve_model
from florence_jax.backbone.backbone import Backbone, backbone_shapes
from florence_jax.backbone.config import BackboneConfig, preset
from florence_jax.backbone.load import (
    StoredWeights,
    find_weights,
    left_out_classifier,
    read_backbone,
)
from florence_jax.backbone.save import save_backbone
from florence_jax.backbone.timm_config import to_timm
from florence_jax.checkpoint.param_tree import flatten, unflatten
from florence_jax.model.handle import Params
from florence_jax.model.layers import INIT_STD
from florence_jax.processing.image.crop import CropConfig
from florence_jax.runtime.text_file import MAX_SETTINGS_BYTES, read_json
from florence_jax.segmentation.segmenter import Segmenter, SegmenterConfig, start_from_backbone
from florence_jax.segmentation.storage import (
    is_segmenter,
    left_out_layers,
    read_segmenter,
    read_segmenter_config,
    save_segmenter,
    segmenter_settings,
    segmenter_shapes,
)
from florence_jax.sharding import ParamSharding
from florence_jax.training.config_loader import from_tree, to_tree
from florence_jax.training.images.config import ClassifyConfig, ImageRunConfig, SegmentConfig
from florence_jax.training.state import Flat

_FILE = "network.json"
# The last kernels of the branches that a block adds to what enters it.
_BRANCH = re.compile(r"vision_tower/.*(attn/proj|/fc2)/kernel")


@dataclass(frozen=True, kw_only=True)
class ImageNetwork:
    """An image network without its weights.

    Attributes:
        config: its sizes, and how images are preprocessed.
        classes: names of its classes.
        notes: what is left out of the weights that the run starts from.
    """

    config: BackboneConfig | SegmenterConfig
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def backbone(self) -> BackboneConfig:
        """The sizes of the DaViT."""
        return self.config if isinstance(self.config, BackboneConfig) else self.config.backbone

    @property
    def image(self) -> CropConfig:
        """How images are preprocessed."""
        return self.backbone.image

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Path -> shape of every parameter."""
        if isinstance(self.config, BackboneConfig):
            return backbone_shapes(self.config)
        return segmenter_shapes(self.config)

    def save(self, directory: Path, params: Params) -> None:
        """Write a directory that `load_backbone` or `load_segmenter` reads, in place of another."""
        if isinstance(self.config, BackboneConfig):
            save_backbone(directory, self.config, params, label_names=self.classes, overwrite=True)
        else:
            save_segmenter(directory, self.config, params, label_names=self.classes, overwrite=True)


def describe_network(config: ImageRunConfig, classes: tuple[str, ...]) -> ImageNetwork:
    """The network of a run that begins; no weights are read.

    Raises:
        CheckpointError, ConfigError: `model.start` holds no such network, or the sizes have no
            form in which they could be exported.
    """
    if isinstance(config, ClassifyConfig):
        found = _weights(config)
        note = left_out_classifier(found, len(classes))
        sizes = dataclasses.replace(
            _backbone(config, found.config), num_classes=len(classes), feature_norms=False
        )
        to_timm(sizes)  # said now, and not when the trained network cannot be written
        return ImageNetwork(config=sizes, classes=classes, notes=(note,) if note else ())
    stored = _stored_segmenter(config)
    if stored is not None:
        directory, sizes = stored
        notes = ()
        if sizes.num_classes != len(classes):
            notes = (left_out_layers(directory, sizes, len(classes)),)
        backbone = _backbone(config, sizes.backbone)
        sizes = dataclasses.replace(sizes, backbone=backbone, num_classes=len(classes))
    else:
        backbone = dataclasses.replace(
            _backbone(config, _weights(config).config),
            num_classes=0,
            feature_norms=config.model.feature_norms,
        )
        named = ("hidden_dim", "pool_sizes", "auxiliary_dim", "auxiliary_weight")
        heads = {name: getattr(config.model, name) for name in named}
        notes = ()
        sizes = SegmenterConfig(backbone=backbone, num_classes=len(classes), **heads)
    segmenter_settings(sizes)
    return ImageNetwork(config=sizes, classes=classes, notes=notes)


def write_network(network: ImageNetwork, directory: Path) -> None:
    """Write a network's description, without weights."""
    directory.mkdir(parents=True, exist_ok=True)
    kind = "backbone" if isinstance(network.config, BackboneConfig) else "segmenter"
    content = {kind: to_tree(network.config), "classes": list(network.classes)}
    (directory / _FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_network(directory: Path) -> ImageNetwork:
    """Read what `write_network` wrote.

    Raises:
        ValueError, OSError: it is not there, or something else is.
    """
    content: Any = read_json(directory / _FILE, max_bytes=MAX_SETTINGS_BYTES)
    classes = tuple(content["classes"])
    if "backbone" in content:
        config: Any = from_tree(BackboneConfig, content["backbone"])
    else:
        config = from_tree(SegmenterConfig, content["segmenter"])
    return ImageNetwork(config=config, classes=classes)


def first_parameters(config: ImageRunConfig, network: ImageNetwork, layout: ParamSharding) -> Flat:
    """The parameters that training begins with, float32 and in their true shapes, on the mesh."""
    stored = _stored_segmenter(config)
    if stored is not None and isinstance(network.config, SegmenterConfig):
        params = read_segmenter(
            stored[0], stored[1], network.config, "float32", layout=layout, seed=config.seed
        )
        return dict(flatten(params))
    if config.model.from_scratch:
        params: Any = unflatten(scratch_leaves(network.shapes, config.seed))
    elif isinstance(network.config, SegmenterConfig):
        key = jax.random.fold_in(jax.random.key(config.seed), 4)
        backbone_params = _backbone_parameters(config, network.backbone, None)
        params = start_from_backbone(network.config, backbone_params, key)[1]
    else:
        params = _backbone_parameters(config, network.backbone, layout)
    return {
        path: jax.device_put(jnp.asarray(leaf, jnp.float32), layout.true_sharding(path))
        for path, leaf in flatten(params)
    }


def scratch_leaves(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Random parameters that a small network can start from, float32 by path.

    As `florence_jax.training.pretrained.scratch_parameters` says: kernels keep the variance of what
    passes through them, and those that end the tower's N branches have N times less.

    Args:
        shapes: of all parameters by path.
        seed: of the kernels.
    """
    rng = np.random.default_rng(seed)
    branches = sum(1 for path in shapes if _BRANCH.fullmatch(path))
    leaves = {}
    for path, shape in sorted(shapes.items()):
        if not path.endswith("/kernel"):
            full = np.ones if path.endswith(("/scale", "/var")) else np.zeros
            leaves[path] = full(shape, np.float32)
            continue
        depthwise = len(shape) == 4 and shape[2] == 1
        deviation = INIT_STD if depthwise else math.prod(shape[:-1]) ** -0.5
        if _BRANCH.fullmatch(path):
            deviation *= branches**-0.5
        leaves[path] = rng.normal(0.0, deviation, shape).astype(np.float32)
    return leaves


def _backbone_parameters(
    config: ImageRunConfig, backbone: BackboneConfig, layout: ParamSharding | None
) -> Params:
    found = _weights(config)
    if found.file is None and found.plan is None:
        # With the sizes of the run's classifier and norms, which a stored tower may lack.
        found = StoredWeights(backbone)
    return read_backbone(found, backbone, "float32", layout=layout, seed=config.seed)


def handle_of(
    config: ImageRunConfig, network: ImageNetwork, layout: ParamSharding | None
) -> Backbone | Segmenter:
    """The network as functions of its parameters, with the run's stochastic depth."""
    model = config.model
    backbone = dataclasses.replace(
        network.backbone, vision=model.with_drop_path(network.backbone.vision)
    )
    settings: Any = {
        "dtype": model.dtype,
        "matmul_precision": model.matmul_precision,
        "layout": layout,
    }
    if isinstance(network.config, SegmenterConfig):
        sizes = dataclasses.replace(network.config, backbone=backbone)
        return Segmenter(config=sizes, **settings)
    return Backbone(config=backbone, **settings)


def _weights(config: ImageRunConfig) -> StoredWeights:
    model = config.model
    if model.start:
        return find_weights(model.start, revision=model.revision)
    if isinstance(model.architecture, str):
        return StoredWeights(preset(model.architecture))
    assert model.architecture is not None
    return StoredWeights(model.architecture)


def _stored_segmenter(config: ImageRunConfig) -> tuple[Path, SegmenterConfig] | None:
    """The directory and sizes of the segmentation network that a run starts from, if it does."""
    start = config.model.start
    if not isinstance(config, SegmentConfig) or not Path(start).expanduser().is_dir() or not start:
        return None
    directory = resolve_model(start, config.model.revision)
    if not is_segmenter(directory):
        return None
    return directory, read_segmenter_config(directory)


def _backbone(config: ImageRunConfig, stored: BackboneConfig) -> BackboneConfig:
    """The backbone with the image size of the run."""
    size = config.data.image_size
    if size is None:
        return stored
    return dataclasses.replace(stored, image=dataclasses.replace(stored.image, size=tuple(size)))
