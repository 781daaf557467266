"""Models whose parameters are divided among the devices of a mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from jax.sharding import Mesh

from florence_jax.checkpoint import plan_checkpoint, read_params
from florence_jax.checkpoint.param_shapes import param_shapes
from florence_jax.checkpoint.param_tree import flatten, insert
from florence_jax.config import Florence2Config
from florence_jax.model import Model, Params
from florence_jax.quantization import quantized_modules
from florence_jax.sharding import ParamSharding, Rules, load_rules, make_layout, make_mesh

if TYPE_CHECKING:
    from florence_jax.inference.pipeline import Florence2Pipeline

Pipeline = TypeVar("Pipeline", bound="Florence2Pipeline")
MeshLike = Mesh | str
RulesLike = Rules | str | Path

DEFAULT_RULES = "fsdp_tp"


def load_on_mesh(
    directory: Path,
    dtype: str,
    mesh: MeshLike,
    rules: RulesLike,
    *,
    verify: bool = True,
    progress: bool = False,
) -> tuple[Model, Params]:
    """A checkpoint with each tensor read straight to the devices that hold it.

    Args:
        mesh: or its axes, as "data=2,tensor=4".
        rules: a preset's name, a .toml file, or a table.
        verify: compare a checkpoint in this library's own format with its manifest first.
        progress: show progress bars on stderr.

    Raises:
        RuleError, ValueError: a mesh or rules that do not fit; CheckpointError as loading does.
    """
    plan = plan_checkpoint(directory, verify=verify, progress=progress)
    layout = _layout(plan.config, mesh, rules)
    params = read_params(plan, dtype, layout.stored_sharding, progress)
    return Model(config=plan.config, dtype=dtype, layout=layout), _placed(params, layout)


def shard_pipeline(
    pipeline: Pipeline, mesh: MeshLike, rules: RulesLike = DEFAULT_RULES
) -> Pipeline:
    """A pipeline with its parameters on a mesh.

    Raises:
        RuleError, ValueError: a mesh or rules that do not fit, or weights that are quantised.
    """
    if quantized_modules(pipeline.params):
        raise ValueError("quantized weights are kept on one device: leave out the mesh")
    layout = _layout(pipeline.model.config, mesh, rules)
    return dataclasses.replace(
        pipeline,
        model=dataclasses.replace(pipeline.model, layout=layout),
        params=_placed(pipeline.params, layout),
    )


def _layout(config: Florence2Config, mesh: MeshLike, rules: RulesLike) -> ParamSharding:
    return make_layout(
        rules if isinstance(rules, Rules) else load_rules(rules),
        param_shapes(config),
        mesh if isinstance(mesh, Mesh) else make_mesh(mesh),
    )


def _placed(params: Mapping[str, Any], layout: ParamSharding) -> Params:
    tree: Params = {}
    for path, leaf in layout.to_padded(dict(flatten(params))).items():
        insert(tree, path, leaf)
    return tree
