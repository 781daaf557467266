"""Low-rank adapters (https://arxiv.org/abs/2106.09685) on the linear layers that a regex names.

An adapted kernel W [in, out] acts as W + (alpha / rank) * a @ b, with a [in, rank] and
b [rank, out]. The factors lie in the flat parameter dict at "PATH/kernel/a" and "PATH/kernel/b".
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from florence_jax.adapters import Adapter, LowRank
from florence_jax.model.layers import Linear, dropout, fold_in
from florence_jax.sharding import ParamSharding
from florence_jax.sharding.param_sharding import Shape
from florence_jax.training.settings import LoraConfig


def init_factors(
    config: LoraConfig, shapes: Mapping[str, Shape], key: jax.Array
) -> dict[str, jax.Array]:
    """Factors of every target: `a` uniform, `b` zero, so that training starts at W.

    Raises:
        ValueError: see `targets_of`.
    """
    factors = {}
    for number, path in enumerate(targets_of(config, shapes)):
        width, out = shapes[path]
        # Kaiming's uniform with a = sqrt(5), as torch initialises a linear layer.
        bound = 1.0 / math.sqrt(width)
        factors[f"{path}/a"] = jax.random.uniform(
            jax.random.fold_in(key, number), (width, config.rank), minval=-bound, maxval=bound
        )
        factors[f"{path}/b"] = jnp.zeros((config.rank, out))
    return factors


def targets_of(config: LoraConfig, shapes: Mapping[str, Shape]) -> list[str]:
    """The paths of the kernels that get an adapter, in order.

    Raises:
        ValueError: the regex names no kernel, or one that is not a matrix.
    """
    targets = sorted(path for path in shapes if re.fullmatch(config.targets, path))
    if not targets:
        raise ValueError(f"lora.targets {config.targets!r} matches no parameter")
    for path in targets:
        if len(shapes[path]) != 2 or not path.endswith("/kernel"):
            raise ValueError(
                f"lora.targets {config.targets!r} matches {path} of shape {list(shapes[path])}: "
                "only kernels of linear layers, [in, out], can be adapted"
            )
    return targets


def with_factors(layout: ParamSharding, config: LoraConfig) -> ParamSharding:
    """The layout with factors that are divided as their kernels are; a rank is never divided.

    Raises:
        ValueError: see `targets_of`.
    """
    shapes, specs = dict(layout.shapes), dict(layout.specs)
    for path in targets_of(config, layout.shapes):
        width, out = layout.shapes[path]
        rows, columns = (*layout.specs[path], None, None)[:2]
        shapes |= {f"{path}/a": (width, config.rank), f"{path}/b": (config.rank, out)}
        specs |= {f"{path}/a": PartitionSpec(rows), f"{path}/b": PartitionSpec(None, columns)}
    return dataclasses.replace(layout, shapes=shapes, specs=specs)


def is_factor(path: str) -> bool:
    return path.endswith(("/kernel/a", "/kernel/b"))


def as_adapter(factors: Mapping[str, np.ndarray], config: LoraConfig) -> Adapter:
    """Trained factors as an adapter, which `florence_jax.adapters.write_adapter` gives to PEFT."""
    modules = {
        path: LowRank(a=factors[f"{path}/a"], b=factors[f"{path}/b"], alpha=config.alpha)
        for path in sorted({path.rpartition("/")[0] for path in factors})
    }
    return Adapter(modules=modules, use_rslora=config.rank_stabilised)


def adapt(
    module: nnx.Module,
    factors: Mapping[str, jax.Array],
    config: LoraConfig,
    key: jax.Array | None,
) -> None:
    """Let the linear layers of a module that is being traced add their adapters' output.

    Args:
        module: freshly bound; it is changed, and lives no longer than the trace.
        factors: Factors as from `init_factors`.
        key: turns dropout on.
    """
    paths = sorted({path.rpartition("/")[0] for path in factors})
    linears = dict(_linears(module))
    for number, path in enumerate(paths):
        linear = linears[path.removesuffix("/kernel")]
        linear.adapter = _low_rank(
            factors[f"{path}/a"], factors[f"{path}/b"], config, fold_in(key, number)
        )


def merge(
    params: Mapping[str, jax.Array],
    factors: Mapping[str, jax.Array],
    config: LoraConfig,
    dtype: str | None = None,
) -> dict[str, jax.Array]:
    """The flat parameters with every adapter added to its kernel.

    Args:
        dtype: of these sums, which are rounded once; None for each kernel's own.
    """
    merged = dict(params)
    for path in sorted({path.rpartition("/")[0] for path in factors}):
        a, b = factors[f"{path}/a"], factors[f"{path}/b"]
        delta = config.scale * jnp.matmul(a, b, precision="highest")
        total = params[path].astype(jnp.float32) + delta
        merged[path] = total.astype(dtype or params[path].dtype)
    return merged


def _low_rank(
    a: jax.Array, b: jax.Array, config: LoraConfig, key: jax.Array | None
) -> Callable[[jax.Array], jax.Array]:
    def adapter(x: jax.Array) -> jax.Array:
        x = dropout(x, config.dropout, key)
        return (x @ a.astype(x.dtype)) @ b.astype(x.dtype) * config.scale

    return adapter


def _linears(module: nnx.Module) -> Iterator[tuple[str, Linear]]:
    for path, node in nnx.iter_modules(module):
        if isinstance(node, Linear):
            yield "/".join(map(str, path)), node
