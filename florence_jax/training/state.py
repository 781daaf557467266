"""The state of a training run and its batches: one pytree each, and how they lie on the mesh.

Checkpoints hold parameters in their true shapes. Programs take a vocabulary padded to a size that
the mesh divides, and cut the padding off first.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from florence_jax.sharding import (
    ParamSharding,
    batch_sharding,
    data_share,
    global_batch,
    pad_rows,
    padded_rows,
    trim,
)
from florence_jax.sharding.param_sharding import Shape
from florence_jax.training.losses import IGNORE

Flat = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Parameters by path ("encoder/layers/0/fc1/kernel") and everything that belongs to them.

    Attributes:
        step: int32[], updates done.
        trainable: float32 parameters that train, LoRA factors included.
        frozen: the other parameters, in `model.frozen_dtype`.
        opt_state: optax's, for `trainable` alone.
        ema: float32 moving average of `trainable`, or None.
        failed_at: int32[], the step whose loss, gradient or update was not finite, or -1. From
            there on updates change nothing, so the last good state is still here when the host
            looks.
    """

    step: jax.Array
    trainable: Flat
    frozen: Flat
    opt_state: Any
    ema: Flat | None
    failed_at: jax.Array


class Batch(NamedTuple):
    """Examples of one update, split into A micro-batches.

    A row whose labels are all -100 has no weight, whatever else is in it.

    Attributes:
        images: uint8[A, B, H, W, 3]; or float[A, B, h, w, C], their cached features.
        input_ids: int32[A, B * Q, P], the prompts; Q consecutive rows are about one image.
        labels: int32[A, B * Q, L], the tokens to learn; -100 is padding.
        ids: of its rows in order, A * B * Q; "" for a row that fills up an image's. Only batches
            on the host have ids and problems: `StateSharding.batch` leaves them out.
        problems: (id, reason) of rows without weight.
    """

    images: Any
    input_ids: Any
    labels: Any
    ids: tuple[str, ...] = ()
    problems: tuple[tuple[str, str], ...] = ()


def new_state(
    trainable: Mapping[str, jax.Array],
    frozen: Mapping[str, jax.Array],
    optimizer: optax.GradientTransformation,
    *,
    with_ema: bool,
) -> TrainState:
    """The state before the first step. Trainable parameters become float32."""
    masters = {path: jnp.asarray(leaf, jnp.float32) for path, leaf in trainable.items()}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=masters,
        frozen=dict(frozen),
        opt_state=optimizer.init(masters),
        # A copy: the step donates its state, and one buffer cannot be donated twice.
        ema=jax.tree.map(jnp.copy, masters) if with_ema else None,
        failed_at=jnp.full((), -1, jnp.int32),
    )


def not_finite(state: TrainState) -> list[str]:
    """The names of the leaves of a state that hold a number that is not finite."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    good = jax.device_get(jax.jit(_all_finite)([leaf for _, leaf in leaves]))
    return [name for name, is_good in zip(names, good, strict=True) if not is_good]


def _all_finite(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])


def eval_params(state: TrainState) -> Flat:
    """The parameters to evaluate and export: the moving average where there is one."""
    return {**state.frozen, **(state.trainable if state.ema is None else state.ema)}


def drop_frozen(state: TrainState) -> TrainState:
    """The state without its frozen parameters, which a run directory holds only once."""
    return dataclasses.replace(state, frozen={})


@dataclass(frozen=True, kw_only=True)
class StateSharding:
    """The shardings of a run's arrays.

    A tree's leaf belongs to the parameter whose path is among its keys, if it has the parameter's
    shape: moments and moving averages lie as their parameters do. All else is whole on each device.

    Attributes:
        layout: The sharding of every parameter, adapters included.
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

    def step(self, step: Callable[..., Any]) -> Callable[..., Any]:
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
