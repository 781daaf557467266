"""Parameter sharding: rules resolved for a mesh and the parameters' shapes.

A parameter has two shapes. Checkpoints have its *true* shape. On a mesh that does not divide the
vocabulary, the table is *padded* with rows of zeros to a size that the mesh divides, because arrays
at the edge of a program must be divided evenly. Programs trim the padding first (`trim`): inside,
the compiler divides any size, so no logit, random draw or optimizer state sees it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from florence_jax.sharding.rules import Rules, assign, axes_of

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Replicated:
    """A dimension that the rules divide and the mesh cannot, so that every device holds all of it.

    Attributes:
        path: path of the parameter.
        dimension, size: the dimension and its size.
        axes, parts: the axes that do not divide it, and the number of parts that they make.
    """

    path: str
    dimension: int
    size: int
    axes: tuple[str, ...]
    parts: int

    def __str__(self) -> str:
        return (
            f"{self.path}: dimension {self.dimension} of {self.size} is whole on every device: "
            f"{'x'.join(self.axes)} would divide it into {self.parts}"
        )


# Compared by identity: a layout is made once, and is a static argument of programs.
@dataclass(frozen=True, kw_only=True, eq=False)
class ParamSharding:
    """The sharding of each parameter on a mesh.

    Attributes:
        mesh: may be abstract, to plan without devices.
        shapes: path -> true shape.
        specs: path -> PartitionSpec of the padded array.
        padded: path -> padded shape, for parameters that are padded.
        replicated: dimensions that the rules divide and the mesh cannot.
    """

    mesh: Mesh | AbstractMesh
    shapes: Mapping[str, Shape]
    specs: Mapping[str, PartitionSpec]
    padded: Mapping[str, Shape]
    replicated: tuple[Replicated, ...]

    def shape(self, path: str) -> Shape:
        """The padded shape of a parameter."""
        return self.padded.get(path, self.shapes[path])

    def sharding(self, path: str) -> NamedSharding:
        """The sharding of the padded array."""
        return NamedSharding(self.mesh, self.specs[path])

    def true_sharding(self, path: str) -> NamedSharding:
        """The sharding of the true-shaped array: `sharding`, or the nearest it allows."""
        if path not in self.padded:
            return self.sharding(path)
        return NamedSharding(self.mesh, _true_spec(self.shapes[path], self.specs[path], self.mesh))

    @jax.named_scope("gather_parameters")
    def gather_for_compute(self, params: Any, dtype: Any) -> Any:
        """Gather nested parameters along `fsdp` for arithmetic, inside a program.

        Gradients keep the parameters' sharding. Without this the compiler sometimes moves
        activations instead of parameters. Leaves that are not in the layout stay unchanged.

        Args:
            dtype: the dtype of activations. Matrices, which are multiplied in it, are cast to it
                before they are gathered if that is smaller, and so are their gradients summed.
        """
        dtype = jnp.dtype(dtype)

        def whole(path: tuple, leaf: jax.Array) -> jax.Array:
            spec = self.specs.get("/".join(entry.key for entry in path), PartitionSpec())
            kept = PartitionSpec(*(_without_fsdp(entry) for entry in spec))
            if kept == spec:
                return leaf
            smaller = leaf.ndim > 1 and jnp.issubdtype(leaf.dtype, jnp.floating)
            smaller = smaller and dtype.itemsize < leaf.dtype.itemsize
            divided, gathered = NamedSharding(self.mesh, spec), NamedSharding(self.mesh, kept)
            return _gathered(leaf, divided, gathered, dtype if smaller else leaf.dtype)

        return jax.tree_util.tree_map_with_path(whole, params)

    def to_padded(self, params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Pad flat parameters of true shape, wherever they lie, and put them on the mesh.

        Each array is copied at most once; the caller frees the original.
        """
        return {
            path: self._pad(path)(jax.device_put(leaf, self.true_sharding(path)))
            if path in self.padded
            else jax.device_put(leaf, self.sharding(path))
            for path, leaf in params.items()
        }

    def to_true_shape(self, params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Bring flat padded parameters to their true shapes, for a checkpoint."""
        return {
            path: self._trim(path)(leaf) if path in self.padded else leaf
            for path, leaf in params.items()
        }

    def bytes_per_device(self, itemsize: int = 4) -> int:
        """Bytes of parameters on the fullest device."""
        return sum(
            itemsize * math.prod(self.sharding(p).shard_shape(self.shape(p))) for p in self.shapes
        )

    @cached_property
    def _compiled(self) -> dict[tuple[str, str], jax.stages.Wrapped]:
        return {}

    def _pad(self, path: str) -> jax.stages.Wrapped:
        missing = [
            (0, placed - true)
            for placed, true in zip(self.padded[path], self.shapes[path], strict=True)
        ]
        return self._once("pad", path, lambda leaf: jnp.pad(leaf, missing), self.sharding(path))

    def _trim(self, path: str) -> jax.stages.Wrapped:
        shape = self.shapes[path]
        return self._once("trim", path, lambda leaf: trim(leaf, shape), self.true_sharding(path))

    def _once(self, kind: str, path: str, function, out: NamedSharding) -> jax.stages.Wrapped:
        key = (kind, path)
        if key not in self._compiled:
            self._compiled[key] = jax.jit(function, out_shardings=out)
        return self._compiled[key]


def make_layout(
    rules: Rules, shapes: Mapping[str, Shape], mesh: Mesh | AbstractMesh
) -> ParamSharding:
    """Resolve `rules` for parameters of these shapes on a mesh.

    Raises:
        RuleError: a parameter without a rule, a rule without a parameter, or a rule with more
            dimensions than a parameter has.
    """
    specs: dict[str, PartitionSpec] = {}
    padded: dict[str, Shape] = {}
    replicated: list[Replicated] = []
    for path, rule in assign(rules, shapes).items():
        shape = shapes[path]
        entries: list[str | tuple[str, ...] | None] = []
        for number, entry in enumerate(rule.spec):
            axes = tuple(axis for axis in axes_of(entry) if axis in mesh.axis_names)
            parts = math.prod(mesh.shape[axis] for axis in axes)
            size = shape[number] if number < len(shape) else 1
            if parts == 1:
                entries.append(None)
            elif size % parts == 0:
                entries.append(axes[0] if len(axes) == 1 else axes)
            elif rule.pad and number == 0:
                entries.append(axes[0] if len(axes) == 1 else axes)
                padded[path] = (-(-size // parts) * parts, *shape[1:])
            else:
                entries.append(None)
                replicated.append(
                    Replicated(path=path, dimension=number, size=size, axes=axes, parts=parts)
                )
        while entries and entries[-1] is None:
            entries.pop()
        specs[path] = PartitionSpec(*entries)
    return ParamSharding(
        mesh=mesh,
        shapes=dict(shapes),
        specs=specs,
        padded=padded,
        replicated=tuple(replicated),
    )


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gathered(
    leaf: jax.Array, divided: NamedSharding, whole: NamedSharding, dtype: jnp.dtype
) -> jax.Array:
    if dtype != leaf.dtype:
        # Each device casts its own part: left to itself, a compiler may gather first.
        leaf = jax.lax.with_sharding_constraint(leaf.astype(dtype), divided)
    return jax.lax.with_sharding_constraint(leaf, whole)


def _gathered_forward(
    leaf: jax.Array, divided: NamedSharding, whole: NamedSharding, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    # Of the residual only the dtype is used.
    return _gathered(leaf, divided, whole, dtype), jnp.zeros((), leaf.dtype)


def _gathered_backward(
    divided: NamedSharding,
    whole: NamedSharding,
    dtype: jnp.dtype,
    like: jax.Array,
    gradient: jax.Array,
) -> tuple[jax.Array]:
    # Summed where it is made and then cut, which is one reduce-scatter; a cast between the two
    # would hide that from the compiler. Asked for the parts alone, the compiler moves the
    # activations that an embedding's gradient is made of.
    gradient = jax.lax.with_sharding_constraint(gradient, whole)
    return (jax.lax.with_sharding_constraint(gradient, divided).astype(like.dtype),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def _without_fsdp(entry: str | tuple[str, ...] | None) -> tuple[str, ...] | str | None:
    kept = tuple(axis for axis in axes_of(entry) if axis != "fsdp")
    return kept[0] if len(kept) == 1 else kept or None


def trim(leaf: jax.Array, shape: Shape) -> jax.Array:
    """Remove the padding of an array."""
    if leaf.shape == tuple(shape):
        return leaf
    return leaf[tuple(slice(size) for size in shape)]


def _true_spec(shape: Shape, spec: PartitionSpec, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Move the axes of the padded first dimension to another dimension that they divide."""
    first, *rest = (*spec, *(None,) * (len(shape) - len(spec)))
    for number, (size, entry) in enumerate(zip(shape[1:], rest, strict=True)):
        axes = (*axes_of(entry), *axes_of(first))
        if size % math.prod(mesh.shape[axis] for axis in axes) == 0:
            return PartitionSpec(None, *rest[:number], axes, *rest[number + 1 :])
    return PartitionSpec(None, *rest)
