"""The device mesh: its axes, its shape as text, and batch shardings on it.

`data` divides the batch and repeats the parameters; `fsdp` divides both; `tensor` divides heads,
hidden channels and the vocabulary of one example's arithmetic. `dcn_data`, outermost and optional,
divides the batch among slices that are joined by the slower network of the data centre.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("dcn_data", "data", "fsdp", "tensor")
# The batch is divided by all of these, the outermost first.
_BATCH_AXES = ("dcn_data", "data", "fsdp")

AnyMesh = Mesh | AbstractMesh


@dataclass(frozen=True, kw_only=True)
class MeshShape:
    """The number of devices along each axis; one axis may be -1 and takes the rest.

    Attributes:
        dcn_data: slices; 1 makes a mesh without this axis.
        data, fsdp, tensor: devices along each axis (of one slice, where there are several).
    """

    dcn_data: int = 1
    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        wrong = {name: size for name, size in self.sizes().items() if size < 1 and size != -1}
        if wrong:
            raise ValueError(f"mesh axes must be at least 1, or -1 for the rest, got {wrong}")
        if list(self.sizes().values()).count(-1) > 1:
            raise ValueError(f"at most one mesh axis can be -1, got {self}")

    def sizes(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def resolved(self, devices: int) -> MeshShape:
        """The shape with -1 replaced, for a given number of devices.

        Raises:
            ValueError: the axes do not multiply to the number of devices.
        """
        sizes = self.sizes()
        given = math.prod(size for size in sizes.values() if size != -1)
        if -1 in sizes.values() and devices % given == 0:
            return MeshShape(**{k: devices // given if v == -1 else v for k, v in sizes.items()})
        if -1 in sizes.values() or given != devices:
            raise ValueError(
                f"mesh {self} asks for {'a multiple of ' if -1 in sizes.values() else ''}{given} "
                f"devices, and there are {devices}: make its axes multiply to {devices}, or give "
                "one of them as -1"
            )
        return self

    def __str__(self) -> str:
        return ",".join(f"{k}={v}" for k, v in self.sizes().items() if v != 1) or "data=1"


def parse_mesh(text: str) -> MeshShape:
    """Parse "data=2,fsdp=4"; axes that are not named have one device.

    Raises:
        ValueError: a name that is no axis, or a size that is no number.
    """
    sizes: dict[str, int] = {}
    for word in filter(None, text.replace(" ", "").split(",")):
        name, _, size = word.partition("=")
        if name not in AXES or name in sizes or not size.removeprefix("-").isdigit():
            raise ValueError(
                f"mesh {text!r}: {word!r} is not AXIS=SIZE with an axis, each once, of "
                f"{', '.join(AXES)}"
            )
        sizes[name] = int(size)
    if not sizes:
        raise ValueError("an empty mesh: name its axes, for example data=-1")
    return MeshShape(**sizes)


def make_mesh(shape: MeshShape | str, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of these devices, by default of all devices of all processes.

    Neighbours along `tensor`, and then along `fsdp`, are near each other in the hardware. Axes are
    of type Auto: the compiler chooses what the rules leave open.

    Raises:
        ValueError: the shape does not fit the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = parse_mesh(shape) if isinstance(shape, str) else shape
    shape = shape.resolved(len(devices))
    within = (shape.data, shape.fsdp, shape.tensor)
    if shape.dcn_data == 1:
        grid, names = _near(within, devices), AXES[1:]
    else:
        grid, names = _grid_of_slices(shape.dcn_data, within, devices), AXES
    return Mesh(grid, names, axis_types=(AxisType.Auto,) * len(names))


def _grid_of_slices(slices: int, within: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    groups: dict[int, list[Any]] = {}
    for device in devices:
        groups.setdefault(getattr(device, "slice_index", device.process_index), []).append(device)
    if len(groups) == 1:
        # One slice, or one process: nothing is slow between any two, so any division will do.
        return _near((slices, *within), devices)
    if len(groups) != slices:
        raise ValueError(f"dcn_data={slices}, but the devices are in {len(groups)} slices")
    grids = [_near(within, group) for _, group in sorted(groups.items())]
    return np.stack(grids)


def _near(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """Arrange devices in a grid whose neighbours are near each other in the hardware."""
    # Without splitting, data=8,fsdp=8 would be refused on a torus of 4x4x4 chips.
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def batch_axes(mesh: AnyMesh) -> tuple[str, ...]:
    """The axes that divide the batch, outermost first."""
    return tuple(name for name in _BATCH_AXES if name in mesh.axis_names)


def batch_parts(mesh: AnyMesh) -> int:
    """The number of parts that a batch is divided into."""
    return math.prod(mesh.shape[name] for name in batch_axes(mesh))


def batch_sharding(mesh: AnyMesh, *, axis: int = 0) -> NamedSharding:
    """The sharding of arrays whose axis number `axis` runs over the examples of a batch."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, batch_axes(mesh)))
