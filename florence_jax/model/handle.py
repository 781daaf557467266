"""`Handle`: a network as functions of its parameters, the base of `Model` and `Backbone`.

The jit boundary is plain `jax.jit` over a plain nested dict of arrays; the nnx modules exist only
while a function is traced.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from florence_jax.matmul_precision import (
    MatmulPrecision,
    check_matmul_precision,
    precision_scope,
)
from florence_jax.model.layers import Linear, LowRankAdapter
from florence_jax.quantization import quantized_modules

if TYPE_CHECKING:
    from florence_jax.sharding.param_sharding import ParamSharding

Params = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Handle(abc.ABC):
    """A network without its weights: hashable, so it can be a static argument of `jax.jit`.

    Attributes:
        dtype: what activations are computed in ("float32", "bfloat16", "float16"); parameters of
            another dtype are cast where they are used.
        matmul_precision: how products and convolutions of float32 are computed. "highest" is
            float32; "high" is three bfloat16 passes on a TPU and TensorFloat32 on a GPU; "default"
            is one bfloat16 pass on a TPU and TensorFloat32 on a GPU. The CPU always computes in
            float32. It changes nothing where `dtype` is not float32.
        layout: how the parameters are divided among the devices of a mesh; None where all of them
            are on one.
    """

    dtype: str = "float32"
    matmul_precision: MatmulPrecision = "highest"
    layout: ParamSharding | None = None

    def __post_init__(self) -> None:
        check_matmul_precision(self.matmul_precision)

    @abc.abstractmethod
    def build(self, rngs: nnx.Rngs | None) -> Any:
        """The network's modules, with zeros for weights where there are no `rngs`."""

    def precision_scope(self) -> contextlib.AbstractContextManager[None]:
        """Applies `matmul_precision` to what is traced inside.

        The library's programs are traced in it; trace the modules of `bind` in it yourself.
        """
        return precision_scope(self.dtype, self.matmul_precision)

    @property
    def mesh(self) -> Mesh | None:
        """The devices that programs run on; None for one, and where they are only planned."""
        mesh = None if self.layout is None else self.layout.mesh
        return mesh if isinstance(mesh, Mesh) else None

    def init(self, key: jax.Array) -> Params:
        """Random float32 parameters, as the reference initialises them."""
        return _init(self, key)

    def bind(self, params: Params) -> Any:
        """The modules with these weights in them, for use inside a function being traced.

        Products have jax's default precision unless they are traced in `precision_scope`. The
        parameters may be quantised, see `florence_jax.quantization`, and have an adapter beside
        them, see `florence_jax.adapters.merge`.

        Raises:
            ValueError: `params` does not have this network's leaves.
        """
        quantized, adapted = quantized_modules(params), adapted_modules(params)
        graphdef, abstract = structure(self, quantized, adapted)
        if jax.tree.structure(params) != jax.tree.structure(abstract):
            raise ValueError(_tree_difference(abstract, params))
        if self.layout is not None:
            params = self.layout.gather_for_compute(params, self.dtype)
        return nnx.merge(graphdef, params)


def adapted_modules(params: Params) -> tuple[str, ...]:
    """Paths of the linear layers that have an adapter beside their kernel."""
    ends = "/adapter/a"
    return tuple(sorted(p.removesuffix(ends) for p in _paths(params) if p.endswith(ends)))


@functools.lru_cache(maxsize=64)
def structure(
    handle: Handle, quantized: tuple[str, ...] = (), adapted: tuple[str, ...] = ()
) -> tuple[nnx.GraphDef, Params]:
    """The modules and their leaves, with a scale or an adapter in those modules that are named."""

    def build() -> Any:
        module = handle.build(None)

        # A path that this network does not have is reported with the whole tree.
        for path in quantized:
            with contextlib.suppress(AttributeError):
                operator.attrgetter(path.replace("/", "."))(module).scale = nnx.Param(jnp.zeros(()))
        for path in adapted:
            with contextlib.suppress(AttributeError):
                linear = operator.attrgetter(path.replace("/", "."))(module)
                if isinstance(linear, Linear):
                    linear.adapter = LowRankAdapter()
        return module

    graphdef, state = nnx.split(nnx.eval_shape(build))
    return graphdef, nnx.to_pure_dict(state)


@functools.partial(jax.jit, static_argnums=0)
def _init(handle: Handle, key: jax.Array) -> Params:
    return nnx.to_pure_dict(nnx.state(handle.build(nnx.Rngs(params=key))))


def _tree_difference(expected: Params, given: Params) -> str:
    wanted, found = _paths(expected), _paths(given)

    def sample(paths: set[str]) -> str:
        shown = sorted(paths)[:5]
        return ", ".join(shown) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")

    parts = []
    if wanted - found:
        parts.append(f"missing: {sample(wanted - found)}")
    if found - wanted:
        parts.append(f"unexpected: {sample(found - wanted)}")
    return "params do not belong to this model's config; " + "; ".join(
        parts or ["other containers"]
    )


def _paths(tree: Any, prefix: str = "") -> set[str]:
    if not isinstance(tree, Mapping):
        return {prefix}
    return {
        path
        for key, sub in tree.items()
        for path in _paths(sub, f"{prefix}/{key}" if prefix else key)
    }
