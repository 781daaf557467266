"""Load a checkpoint onto a mesh, or move parameters there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from florence_jax.checkpoint import plan_checkpoint, read_params
from florence_jax.checkpoint.param_shapes import param_shapes
from florence_jax.checkpoint.param_tree import flatten, insert
from florence_jax.config import Florence2Config
from florence_jax.matmul_precision import MatmulPrecision
from florence_jax.model import Model, Params
from florence_jax.sharding import ParamSharding, Rules, load_rules, make_layout, make_mesh

MeshLike = Mesh | str
RulesLike = Rules | str | Path

DEFAULT_RULES = "fsdp_tp"


def load_on_mesh(
    directory: Path,
    dtype: str,
    mesh: MeshLike,
    rules: RulesLike,
    *,
    matmul_precision: MatmulPrecision = "highest",
    verify: bool = True,
    progress: bool = False,
) -> tuple[Model, Params]:
    """A checkpoint with each tensor read straight to the devices that hold it.

    Args:
        mesh: or its axes, as "data=2,tensor=4".
        rules: a preset's name, a .toml file, or a table.
        matmul_precision: see `Model`.
        verify: compare a checkpoint in this library's own format with its manifest first.
        progress: show progress bars on stderr.

    Raises:
        RuleError, ValueError: a mesh or rules that do not fit; CheckpointError as loading does.
    """
    plan = plan_checkpoint(directory, verify=verify, progress=progress)
    layout = make_param_sharding(plan.config, mesh, rules)
    params = read_params(plan, dtype, layout.true_sharding, progress)
    model = Model(config=plan.config, dtype=dtype, matmul_precision=matmul_precision, layout=layout)
    return model, to_mesh(params, layout)


def make_param_sharding(config: Florence2Config, mesh: MeshLike, rules: RulesLike) -> ParamSharding:
    """How a model's parameters are divided on a mesh.

    Raises:
        RuleError, ValueError: a mesh or rules that do not fit.
    """
    return make_layout(
        rules if isinstance(rules, Rules) else load_rules(rules),
        param_shapes(config),
        mesh if isinstance(mesh, Mesh) else make_mesh(mesh),
    )


def to_mesh(params: Mapping[str, Any], layout: ParamSharding) -> Params:
    """The parameters, padded to what divides evenly, on their devices."""
    tree: Params = {}
    for path, leaf in layout.to_padded(dict(flatten(params))).items():
        insert(tree, path, leaf)
    return tree
