"""Load a model's weights, on one device or divided among the devices of a mesh."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from florence_jax.adapters import merge, read_adapter, resolve_model
from florence_jax.checkpoint import RepositoryConfig, plan_checkpoint, read_params, resolve
from florence_jax.checkpoint.load import checked_dtype
from florence_jax.checkpoint.param_tree import flatten, param_shapes, unflatten
from florence_jax.config import Florence2Config
from florence_jax.inference.overrides import check_keywords
from florence_jax.matmul_precision import MatmulPrecision, check_matmul_precision
from florence_jax.model import Model, Params
from florence_jax.quantization import Quantization, check_quantization, quantized
from florence_jax.sharding import ParamSharding, Rules, load_rules, make_layout, make_mesh

MeshLike = Mesh | str
RulesLike = Rules | str | Path

DEFAULT_RULES = "fsdp_tp"
# Keywords of both ways to load.
LOADING = (
    *("source", "dtype", "matmul_precision", "quantize", "mesh", "rules", "revision", "adapter"),
    *("merge_adapter", "verify"),
)


def load(
    source: str | Path,
    dtype: str = "float32",
    *,
    matmul_precision: MatmulPrecision = "highest",
    quantize: Quantization | None = None,
    mesh: MeshLike | None = None,
    rules: RulesLike = DEFAULT_RULES,
    revision: str | None = None,
    adapter: str | Path | None = None,
    merge_adapter: bool = True,
    verify: bool = True,
    **unknown: Any,
) -> tuple[Model, Params]:
    """Weights alone: the model handle and its parameters. Needs no tokenizer or processor files.

    Args:
        source: a directory or a hub id, as for `Florence2Pipeline.from_pretrained`.
        dtype: "float32", "bfloat16" or "float16", for weights and activations.
        matmul_precision: how float32 is multiplied: "highest" computes in float32 everywhere;
            "high" and "default" are faster and less exact on a GPU or TPU, see `Model`.
        quantize: "int8" keeps the decoder's and the token table's weights in that, see
            `florence_jax.quantization`; by default everything is of `dtype`.
        mesh: devices to divide the parameters and batches among, such as "data=4,tensor=2"; each
            tensor is read straight to where it belongs. By default jax's default device.
        rules: how parameters are divided on it: dp, fsdp, tp, fsdp_tp, or a .toml file.
        revision: branch, tag or commit of a hub id.
        adapter: directory or hub id of a PEFT adapter to add to the model.
        merge_adapter: add the adapter's updates to the weights, once, in a checkpoint that is kept
            on disk (see `florence_jax.adapters.model_directory`): answers then take as long as
            without an adapter. False keeps its low-rank factors beside the weights, which stay as
            they are (int8 with `quantize`), and adds their product in every linear layer.
        verify: compare a checkpoint in this library's own format with its manifest first.

    Raises:
        CheckpointError, ConfigError: what is missing or wrong, and what to do.
        RuleError, ValueError: a mesh or rules that do not fit.
        TypeError: a keyword that does not exist (`unknown` takes none).
    """
    check_keywords(unknown, LOADING)
    chosen = (
        source,
        dtype,
        matmul_precision,
        quantize,
        mesh,
        rules,
        revision,
        adapter,
        merge_adapter,
    )
    return load_model(*chosen, verify=verify)[1:]


def load_model(
    source: str | Path,
    dtype: str,
    matmul_precision: MatmulPrecision,
    quantize: Quantization | None,
    mesh: MeshLike | None,
    rules: RulesLike,
    revision: str | None,
    adapter: str | Path | None,
    merge_adapter: bool,
    verify: bool,
    progress: bool = False,
) -> tuple[RepositoryConfig, Model, Params]:
    """The checkpoint's configuration files, and the model."""
    checked_dtype(dtype)
    check_quantization(quantize)
    check_matmul_precision(matmul_precision)
    keep_low_rank = adapter is not None and not merge_adapter
    if mesh is not None and (quantize is not None or keep_low_rank):
        what = "merge_adapter=False" if quantize is None else f"quantize={quantize}"
        raise ValueError(f"{what} keeps weights on one device: leave out the mesh")
    directory = resolve_model(source, revision, adapter=adapter if merge_adapter else None)
    plan = plan_checkpoint(directory, verify=verify, progress=progress)
    config, layout = plan.config, None
    if mesh is not None:
        layout = make_param_sharding(config, mesh, rules)
    params = read_params(plan, dtype, layout and layout.true_sharding, progress)
    if layout is not None:
        params = to_mesh(params, layout)
    if adapter is not None and keep_low_rank:
        # Before weights are quantised: an update of lm_head is added to the table itself.
        added = merge(params, config, read_adapter(resolve(adapter)), keep_low_rank=True)
        config, params = added.config, jax.device_put(added.params)
    model = Model(config=config, dtype=dtype, matmul_precision=matmul_precision, layout=layout)
    return plan.repository, model, quantized(params, quantize)


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
