"""Sharding: a mesh, a table of rules, and the placement of each array.

Knows no model: parameters are paths with shapes.
"""

from florence_jax.sharding.activations import axis_size, constrain, map_batch_shards
from florence_jax.sharding.batch import (
    all_gather_to_hosts,
    data_share,
    global_batch,
    mesh_of,
    pad_rows,
    padded_rows,
    replicated,
    row_places,
    use_mesh,
)
from florence_jax.sharding.mesh import (
    AXES,
    MeshShape,
    batch_axes,
    batch_parts,
    batch_sharding,
    make_mesh,
    parse_mesh,
)
from florence_jax.sharding.param_sharding import ParamSharding, Replicated, make_layout, trim
from florence_jax.sharding.rules import PRESETS, Rule, RuleError, Rules, assign, load_rules

__all__ = [
    "AXES",
    "PRESETS",
    "MeshShape",
    "ParamSharding",
    "Replicated",
    "Rule",
    "RuleError",
    "Rules",
    "all_gather_to_hosts",
    "assign",
    "axis_size",
    "batch_axes",
    "batch_parts",
    "batch_sharding",
    "constrain",
    "data_share",
    "global_batch",
    "load_rules",
    "make_layout",
    "make_mesh",
    "map_batch_shards",
    "mesh_of",
    "pad_rows",
    "padded_rows",
    "parse_mesh",
    "replicated",
    "row_places",
    "trim",
    "use_mesh",
]
