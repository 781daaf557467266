"""Batches and results on a mesh, of one process or of many."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from florence_jax.sharding.mesh import batch_parts, batch_sharding


@contextlib.contextmanager
def use_mesh(mesh: Mesh | None) -> Iterator[None]:
    """Trace what runs within this context for `mesh`; None changes nothing."""
    if mesh is None:
        yield
        return
    with jax.set_mesh(mesh):
        yield


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that the arrays of a tree lie on; None if each lies on one device."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh
    return None


def padded_rows(mesh: Mesh | None, rows: int) -> int:
    """The smallest number of rows, at least `rows`, that the mesh divides evenly."""
    parts = 1 if mesh is None else batch_parts(mesh)
    return -(-rows // parts) * parts


def pad_rows(array: Any, rows: int, *, axis: int = 0, fill: Any = None) -> Any:
    """Add rows to `array` up to `rows`: filled with `fill`, or copies of its first row."""
    missing = rows - array.shape[axis]
    if missing == 0:
        return array
    numpy = np if isinstance(array, np.ndarray) else jax.numpy
    if fill is None:
        first = numpy.take(array, np.zeros(missing, np.int32), axis=axis)
    else:
        shape = (*array.shape[:axis], missing, *array.shape[axis + 1 :])
        first = numpy.full(shape, fill, array.dtype)
    return numpy.concatenate([array, first], axis=axis)


def divide_batch(mesh: Mesh, array: Any) -> jax.Array:
    """An array [B, ...] on the mesh, with copies of its first row up to what divides evenly.

    In several processes each gives the whole batch.
    """
    array = pad_rows(array, padded_rows(mesh, len(array)))
    sharding = batch_sharding(mesh)
    if mesh.is_multi_process and getattr(array, "is_fully_addressable", True):
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
    return jax.device_put(array, sharding)


def data_share(mesh: Mesh) -> tuple[int, int]:
    """This process's share of a batch: (number, count), of `count` equal shares.

    Processes whose devices hold the same rows (those that a `tensor` axis spans) bring the same.

    Raises:
        ValueError: this process's devices do not hold one contiguous share.
    """
    parts = batch_parts(mesh)
    rows = batch_sharding(mesh).addressable_devices_indices_map((parts,))
    mine = sorted({index[0].indices(parts)[0] for index in rows.values() if index is not None})
    count, left = divmod(parts, len(mine))
    first = mine[0]
    if left or first % len(mine) or mine != list(range(first, first + len(mine))):
        raise ValueError(
            f"process {jax.process_index()} holds the parts {mine} of {parts} of a batch, which is "
            "no even share: let the batch axes of the mesh be multiples of the processes"
        )
    return first // len(mine), count


def row_places(mesh: Mesh, rows: int) -> list[int]:
    """Places of a batch's rows in the one that the mesh divides: each share is filled up alone.

    Args:
        rows: of all processes together.

    Raises:
        ValueError: see `data_share`.
    """
    count = data_share(mesh)[1]
    share, filled = rows // count, padded_rows(mesh, rows) // count
    return [number * filled + row for number in range(count) for row in range(share)]


def global_batch(mesh: Mesh, share: Any, *, axis: int = 0) -> Any:
    """Assemble each process's share of the batch into arrays on the mesh.

    `axis` runs over the examples; each share must be a multiple of what the mesh divides it into.
    """
    sharding = batch_sharding(mesh, axis=axis)
    _, count = data_share(mesh)

    def place(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        shape = (*leaf.shape[:axis], leaf.shape[axis] * count, *leaf.shape[axis + 1 :])
        return jax.make_array_from_process_local_data(sharding, leaf, shape)

    return jax.tree.map(place, share)


def replicated(mesh: Mesh, tree: Any) -> Any:
    """Put a tree of host arrays, equal in every process, whole on every device."""
    sharding = NamedSharding(mesh, PartitionSpec())

    def place(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(place, tree)


def all_gather_to_hosts(mesh: Mesh, tree: Any) -> Any:
    """Gather a tree of arrays on every device, so that each process can read it."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: _identity(sharding)(leaf), tree)


@functools.lru_cache(maxsize=16)
def _identity(sharding: NamedSharding) -> jax.stages.Wrapped:
    return jax.jit(lambda leaf: leaf, out_shardings=sharding)
