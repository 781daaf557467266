"""A run's state and batches on its mesh: everything follows the parameters' layout.

Checkpoints hold parameters in their true shapes. Programs take a vocabulary padded to a size that
the mesh divides, and cut the padding off first.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from florence_jax.sharding import (
    ParamSharding,
    batch_sharding,
    data_share,
    global_batch,
    make_layout,
    pad_rows,
    padded_rows,
    trim,
)
from florence_jax.sharding.param_sharding import Shape
from florence_jax.sharding.rules import Rules
from florence_jax.training.lora import is_factor
from florence_jax.training.losses import IGNORE
from florence_jax.training.step import Batch, Step


@dataclass(frozen=True, kw_only=True)
class StateSharding:
    """The shardings of a run's arrays.

    A tree's leaf belongs to the parameter whose path is among its keys, if it has the parameter's
    shape: moments and moving averages lie as their parameters do. All else is whole on each device.

    Attributes:
        layout: of every parameter, adapters included.
        pad_id: the token of prompts that are added to a batch.
    """

    layout: ParamSharding
    pad_id: int

    @property
    def mesh(self) -> Mesh:
        assert isinstance(self.layout.mesh, Mesh)
        return self.layout.mesh

    def padded(self, tree: Any) -> Any:
        """Padded shapes, dtypes and shardings, as programs take them, of a tree of true shapes."""
        return self._map(self._padded_leaf, tree)

    def true_shapes(self, tree: Any) -> Any:
        """Shapes, dtypes and shardings, as checkpoints hold them, of a tree of true shapes."""
        return self._map(self._true_leaf, tree)

    def to_padded(self, tree: Any) -> Any:
        """A tree of true shapes, on any device, padded and on the mesh."""

        def place(name: str | None, leaf: jax.Array) -> jax.Array:
            if name is not None and name in self.layout.padded:
                return self.layout.to_padded({name: leaf})[name]
            return jax.device_put(leaf, self._padded_leaf(name, leaf).sharding)

        return self._map(place, tree)

    def to_true_shape(self, tree: Any) -> Any:
        """A padded tree in its true shapes."""
        return self._map(
            lambda name, leaf: self.layout.to_true_shape({name: leaf})[name] if name else leaf, tree
        )

    def step(self, step: Step) -> Step:
        """A step on true shapes as one on a padded state."""

        def trimmed(name: str | None, leaf: jax.Array) -> jax.Array:
            return leaf if name is None else trim(leaf, self.layout.shapes[name])

        def padded(name: str | None, leaf: jax.Array) -> jax.Array:
            form = self._padded_leaf(name, leaf)
            missing = [(0, to - size) for to, size in zip(form.shape, leaf.shape, strict=True)]
            leaf = jnp.pad(leaf, missing) if name in self.layout.padded else leaf
            return jax.lax.with_sharding_constraint(leaf, form.sharding)

        def on_mesh(state: Any, batch: Batch) -> Any:
            moved, metrics = step(self._map(trimmed, state), batch)
            return self._map(padded, moved), metrics

        return on_mesh

    @property
    def share(self) -> tuple[int, int]:
        """(index, count) of the equal share of a batch that this process makes."""
        return data_share(self.mesh)

    def batch(self, share: Batch) -> Batch:
        """This process's share of a batch on the mesh, padded with rows of no weight to divide it.

        Raises:
            ValueError: see `data_share`.
        """
        return global_batch(self.mesh, self._filled(share, self.share[1]), axis=1)

    def common_batch(self, whole: Batch) -> Batch:
        """A batch that every process has all of, on the mesh."""
        sharding = batch_sharding(self.mesh, axis=1)

        def place(leaf: Any) -> jax.Array:
            leaf = np.asarray(leaf)
            return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

        return jax.tree.map(place, self._filled(whole, 1))

    def _filled(self, batch: Batch, shares: int) -> Batch:
        images = batch.images.shape[1]
        total = padded_rows(self.mesh, images * shares) // shares

        def padded(leaf: Any, fill: int) -> np.ndarray:
            # Each image has as many rows as the others.
            rows = total * leaf.shape[1] // images
            return pad_rows(np.asarray(leaf), rows, axis=1, fill=fill)

        return Batch(
            images=padded(batch.images, 0),
            input_ids=padded(batch.input_ids, self.pad_id),
            labels=padded(batch.labels, IGNORE),
        )

    def _padded_leaf(self, name: str | None, leaf: Any) -> jax.ShapeDtypeStruct:
        if name is None:
            return self._whole(leaf)
        return jax.ShapeDtypeStruct(
            self.layout.shape(name), leaf.dtype, sharding=self.layout.sharding(name)
        )

    def _true_leaf(self, name: str | None, leaf: Any) -> jax.ShapeDtypeStruct:
        if name is None:
            return self._whole(leaf)
        sharding = self.layout.true_sharding(name)
        return jax.ShapeDtypeStruct(self.layout.shapes[name], leaf.dtype, sharding=sharding)

    def _whole(self, leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(self.layout.mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def _map(self, function: Callable[[str | None, Any], Any], tree: Any) -> Any:
        def one(path: tuple, leaf: Any) -> Any:
            return function(self._parameter(path, leaf.shape), leaf)

        return jax.tree_util.tree_map_with_path(one, tree)

    def _parameter(self, path: tuple, shape: Shape) -> str | None:
        for entry in reversed(path):
            name = getattr(entry, "key", None)
            if name is not None and name in self.layout.shapes:
                same = shape in (self.layout.shapes[name], self.layout.shape(name))
                return name if same else None
        return None


def make_state_sharding(
    rules: Rules, shapes: Mapping[str, Shape], factors: Mapping[str, Shape], mesh: Any, pad_id: int
) -> StateSharding:
    """The shardings of a model's parameters, by `rules`, and of adapters beside their kernels.

    Raises:
        RuleError: rules that do not fit the parameters.
    """
    layout = make_layout(rules, shapes, mesh)
    specs = {}
    for path in factors:
        assert is_factor(path)
        kernel, _, side = path.rpartition("/")
        spec = (*layout.specs[kernel], None, None)
        specs[path] = PartitionSpec(spec[0]) if side == "a" else PartitionSpec(None, spec[1])
    layout = dataclasses.replace(
        layout, shapes={**layout.shapes, **factors}, specs={**layout.specs, **specs}
    )
    return StateSharding(layout=layout, pad_id=pad_id)
