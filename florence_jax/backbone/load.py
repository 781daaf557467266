"""`load_backbone`: a DaViT from timm's weights, the original's, a Florence-2, or random."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from florence_jax.adapters import resolve_model
from florence_jax.backbone.backbone import Backbone, backbone_shapes
from florence_jax.backbone.config import FLORENCE_IMAGE, PRESETS, PUBLISHED, BackboneConfig, preset
from florence_jax.backbone.timm_config import from_timm, is_timm_config, label_names
from florence_jax.checkpoint import CheckpointError, plan_checkpoint, read_params
from florence_jax.checkpoint.load import checked_dtype, read_sources
from florence_jax.checkpoint.param_tree import flatten, unflatten
from florence_jax.checkpoint.plan import LoadPlan
from florence_jax.checkpoint.pytorch.tower_file import (
    OPENERS,
    TowerFile,
    infer_vision,
    match_tower,
    open_tower,
)
from florence_jax.checkpoint.repository import read_json_object
from florence_jax.config import ConfigError
from florence_jax.inference.load_sharded import DEFAULT_RULES, MeshLike, RulesLike, to_mesh
from florence_jax.matmul_precision import MatmulPrecision, check_matmul_precision
from florence_jax.model.handle import Params
from florence_jax.model.layers import INIT_STD
from florence_jax.processing import ImageConfig
from florence_jax.sharding import ParamSharding, Rules, load_rules, make_layout, make_mesh
from florence_jax.sharding.param_sharding import Shape

_TOWER = "vision_tower/"


def load_backbone(
    source: str | Path,
    dtype: str = "float32",
    *,
    config: BackboneConfig | None = None,
    num_classes: int | None = None,
    feature_norms: bool = False,
    pretrained: bool = True,
    seed: int = 0,
    mesh: MeshLike | None = None,
    rules: RulesLike = DEFAULT_RULES,
    matmul_precision: MatmulPrecision = "highest",
    revision: str | None = None,
    verify: bool = True,
) -> tuple[Backbone, Params]:
    """A DaViT as a backbone: the handle and its parameters.

    Args:
        source: one of

            - a published name ("davit_tiny", "davit_base.msft_in1k", "davit_base_fl"), whose
              weights are downloaded from the Hugging Face hub;
            - a weight file (.safetensors, .bin, .pth) in timm's or the original code's naming;
            - a directory or hub id with timm's config.json;
            - anything that `florence_jax.load` takes, of which the tower alone is read.
        dtype: "float32", "bfloat16" or "float16", for weights and activations.
        config: sizes for a weight file of no published kind.
        num_classes: outputs of the classifier. By default as stored; 0 leaves it out; another
            number than the stored one makes a new, untrained classifier.
        feature_norms: give each stage's feature map a layer norm, which starts as 1 and 0.
        pretrained: False draws random weights for a published name or `config`.
        seed: of random weights.
        mesh: devices to divide the parameters and batches among, such as "data=4,tensor=2".
        rules: how parameters are divided on it: dp, fsdp, tp, fsdp_tp, or a .toml file.
        matmul_precision: of float32 products on a GPU or TPU, see `Backbone`.
        revision: branch, tag or commit of a hub id.
        verify: compare a checkpoint in this library's own format with its manifest first.

    Raises:
        CheckpointError, ConfigError: what is missing or wrong, and what to do.
        RuleError, ValueError: a mesh or rules that do not fit.
    """
    checked_dtype(dtype)
    check_matmul_precision(matmul_precision)
    if pretrained:
        found = find_weights(source, config, revision=revision, verify=verify)
    else:
        found = StoredWeights(preset(str(source)) if config is None else config)
    config = _with_head(found, num_classes, feature_norms)
    layout = None if mesh is None else layout_of(backbone_shapes(config), mesh, rules)
    params = read_backbone(found, config, dtype, layout=layout, seed=seed)
    return Backbone(
        config=config, dtype=dtype, matmul_precision=matmul_precision, layout=layout
    ), params


class StoredWeights(NamedTuple):
    """Where a backbone's parameters are, nothing of them read yet.

    Attributes:
        config: the backbone as it is stored.
        file: the tensors of a bare DaViT.
        plan: or a Florence-2; None with `file` None where parameters are drawn.
    """

    config: BackboneConfig
    file: TowerFile | None = None
    plan: LoadPlan | None = None


def find_weights(
    source: str | Path,
    config: BackboneConfig | None = None,
    *,
    revision: str | None = None,
    verify: bool = True,
) -> StoredWeights:
    """Where `source` has its parameters; arguments and errors are those of `load_backbone`."""
    if config is not None and not isinstance(config, BackboneConfig):
        raise ConfigError(f"config is {config!r:.80}, expected a BackboneConfig(vision=...)")
    path = Path(source).expanduser()
    if path.suffix in OPENERS and not path.exists():
        raise CheckpointError(f"there is no file {path}")
    if path.is_file():
        if revision is not None:
            raise CheckpointError(f"revision {revision!r} was given, but {path} is a local file")
        file = open_tower(path)
        return _of_file(file, config or BackboneConfig(vision=infer_vision(file)))
    directory = resolve_model(_published(source), revision)
    settings = read_json_object(directory, "config.json")
    if settings is not None and settings.get("architecture") == "upernet":
        raise CheckpointError(
            f"{directory} holds a segmentation network: load it with load_segmenter"
        )
    if settings is not None and isinstance(settings.get("architecture"), str):
        stored = from_timm(settings)
        name = str(source).partition(".")[0]
        if name in PRESETS:
            # As timm does: config.json on the hub says crop_pct 0.9, timm's own table 0.95.
            stored = dataclasses.replace(stored, image=PRESETS[name].image)
        return _of_file(open_tower(directory), config or stored)
    plan = plan_checkpoint(directory, verify=verify)
    image = ImageConfig.from_hf(plan.repository.preprocessor or {})
    settings = {name: getattr(image, name) for name in ("size", "mean", "std", "resample")}
    crop = dataclasses.replace(FLORENCE_IMAGE, **settings)
    return StoredWeights(BackboneConfig(vision=plan.config.vision, image=crop), plan=plan)


def read_label_names(source: str | Path, revision: str | None = None) -> tuple[str, ...]:
    """The names of a stored classifier's classes, in order; empty where they are not stored.

    Raises:
        CheckpointError, ConfigError: there is no such source, or its config.json is damaged.
    """
    if Path(source).expanduser().is_file():
        return ()
    settings = read_json_object(resolve_model(_published(source), revision), "config.json")
    return label_names(settings) if settings is not None and is_timm_config(settings) else ()


def read_backbone(
    found: StoredWeights,
    config: BackboneConfig,
    dtype: str | None,
    *,
    layout: ParamSharding | None = None,
    seed: int = 0,
) -> Params:
    """Read the parameters of `config`; those that are not stored start untrained.

    Args:
        found: where they are.
        config: the backbone to fill, which differs from the stored one in its head and norms alone.
        dtype: of all parameters; None keeps each tensor's own.
        layout: where they go on a mesh.
        seed: of untrained parameters.
    """
    shapes = backbone_shapes(config)
    placement = None if layout is None else layout.true_sharding
    if found.plan is not None:
        params = read_params(found.plan, dtype, placement, prefix=_TOWER)
    elif found.file is not None:
        stored = backbone_shapes(found.config)
        sources = match_tower(found.file, stored)
        kept = {path: one for path, one in sources.items() if shapes.get(path) == stored[path]}
        params = read_sources(kept, dtype, placement)
    else:
        params = _drawn(config, dtype or "float32", seed)
    there = dict(flatten(params))
    fresh_dtype = dtype or str(next(iter(there.values())).dtype)
    for path in shapes.keys() - there.keys():
        there[path] = jax.numpy.asarray(_untrained(path, shapes[path], seed), fresh_dtype)
    params = unflatten(there)
    return params if layout is None else to_mesh(params, layout)


def left_out_classifier(found: StoredWeights, num_classes: int) -> str | None:
    """The sentence on a stored classifier of another number of classes than these; or None."""
    stored = found.config.num_classes
    if found.file is None or not num_classes or not stored or num_classes == stored:
        return None
    return (
        f"{found.file.label} has a classifier of {stored} classes: it is left out, and one of "
        f"{num_classes} starts untrained"
    )


def _published(source: str | Path) -> str | Path:
    """The hub id of a published name; anything else as it is."""
    name = str(source)
    if name in PUBLISHED:
        return PUBLISHED[name]
    if name not in PRESETS:
        return source
    for tagged, repository in PUBLISHED.items():
        if tagged.partition(".")[0] == name:
            return repository
    raise CheckpointError(
        f"nobody has published weights of {name}: pass pretrained=False for random ones, or one of "
        f"{', '.join(PUBLISHED)}"
    )


def _of_file(file: TowerFile, config: BackboneConfig) -> StoredWeights:
    """The weights of a file, whose classifier may be left out of it."""
    if file.num_classes and config.num_classes and file.num_classes != config.num_classes:
        raise CheckpointError(
            f"{file.label} has a classifier of {file.num_classes} classes, and its config says "
            f"num_classes is {config.num_classes}: correct the config"
        )
    return StoredWeights(dataclasses.replace(config, num_classes=file.num_classes), file)


def _with_head(
    found: StoredWeights, num_classes: int | None, feature_norms: bool
) -> BackboneConfig:
    classes = found.config.num_classes if num_classes is None else num_classes
    config = dataclasses.replace(found.config, num_classes=classes, feature_norms=feature_norms)
    left_out = left_out_classifier(found, classes)
    if left_out is not None:
        warnings.warn(left_out, stacklevel=3)
    return config


def layout_of(shapes: Mapping[str, Shape], mesh: MeshLike, rules: RulesLike) -> ParamSharding:
    """How parameters of these shapes are divided on a mesh; rules for others do not count."""
    table = rules if isinstance(rules, Rules) else load_rules(rules)
    made = mesh if isinstance(mesh, Mesh) else make_mesh(mesh)
    return make_layout(table.without_unused(shapes), shapes, made)


def _drawn(config: BackboneConfig, dtype: str, seed: int) -> Params:
    params = Backbone(config=config).init(jax.random.key(seed))
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def _untrained(path: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A parameter of the head or of a feature map's norm at the start of training."""
    if path.endswith("/kernel"):
        return np.random.default_rng(seed).normal(0.0, INIT_STD, shape)
    return np.ones(shape) if path.endswith("/scale") else np.zeros(shape)
