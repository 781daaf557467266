"""Divide a model's parameters among the devices of a mesh."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from florence_jax.checkpoint.param_tree import flatten, param_shapes, unflatten
from florence_jax.config import Florence2Config
from florence_jax.model import Params
from florence_jax.sharding import ParamSharding, Rules, load_rules, make_layout, make_mesh

MeshLike = Mesh | str
RulesLike = Rules | str | Path

DEFAULT_RULES = "fsdp_tp"


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
    return unflatten(layout.to_padded(dict(flatten(params))))
