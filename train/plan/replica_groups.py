"""Parse the replica groups of a collective, in each of XLA's notations.

replica_groups={{0,1},{2,3}}                                                  listed
replica_groups=[2,2]<=[2,2]T(1,0)                                             rows of an iota
replica_groups=mesh['axis_0'=2,'axis_1'=2], device_ids=([2,2]T(1,0)) {'axis_1'}   axes of a mesh
replica_groups={}                                                             everybody
source_target_pairs={{0,1},{1,0}}                                             of a permutation
_xla_megascale_target="{1,2}x{0:3}"            each device of a slice with its like in the others
"""

from __future__ import annotations

import math
import re

import numpy as np

Groups = tuple[tuple[int, ...], ...]

_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)")
_MESH = re.compile(
    r"replica_groups=@?mesh\[([^\]]*)\](?:, device_ids=\(((?:[^()]|\([^()]*\))*)\))? \{([^}]*)\}"
)
# TPU slices: the program is compiled for one of them, and the devices of the others count on.
_SLICES = re.compile(r'_xla_megascale_target="\{([\d,:]+)\}x')
_AXIS = re.compile(r"'?([\w.-]+)'?(?::\((\d+)\)(\d+))?")


def replica_groups(attributes: str, devices: int) -> Groups:
    """Groups of positions among the program's `devices`, from an instruction's printed attributes.

    Raises:
        ValueError: a notation that is not among those above.
    """
    listed, iota, mesh = (form.search(attributes) for form in (_LISTED, _IOTA, _MESH))
    slices = _SLICES.search(attributes)
    if slices:
        count = sum(map(_length, slices[1].split(",")))
        return tuple(
            tuple(device + devices * number for number in range(count)) for device in range(devices)
        )
    if listed:
        return tuple(_integers(one) for one in re.findall(r"\{([\d, ]*)\}", listed[1]))
    if iota:
        return _rows(_ordered(iota[2]).reshape(_integers(iota[1])))
    if mesh:
        return _mesh_groups(mesh[1], mesh[2], mesh[3])
    written = re.search(r"replica_groups=(?!\{\}).{0,60}", attributes)
    if written:
        raise ValueError(f"XLA's notation of replica groups is not known here: {written[0]!r}")
    return (tuple(range(devices)),)


def _mesh_groups(axes: str, order: str | None, within: str) -> Groups:
    """Groups of the devices that differ in the axes `within` alone."""
    sizes = {name: int(size) for name, size in re.findall(r"'?([\w.-]+)'?=(\d+)", axes)}
    count = math.prod(sizes.values())
    ids = np.arange(count) if order is None else _ordered(order)
    # An axis such as 'fsdp':(2)4 is a part of one: what is left of it stays outside the groups.
    splits = {name: [(False, size)] for name, size in sizes.items()}
    wanted: dict[str, list[tuple[int, int]]] = {}
    for name, before, size in _AXIS.findall(within):
        wanted.setdefault(name, []).append((int(before or 1), int(size or sizes[name])))
    for name, parts in wanted.items():
        pieces, done = [], 1
        for before, size in sorted(parts):
            pieces += [(False, before // done), (True, size)]
            done = before * size
        splits[name] = [*pieces, (False, sizes[name] // done)]
    dimensions = [piece for pieces in splits.values() for piece in pieces]
    grid = ids.reshape([size for _, size in dimensions])
    outside = [number for number, (inside, _) in enumerate(dimensions) if not inside]
    inside = [number for number, (inside, _) in enumerate(dimensions) if inside]
    group = math.prod(grid.shape[number] for number in inside)
    return _rows(grid.transpose(outside + inside).reshape(count // group, group))


def _ordered(text: str) -> np.ndarray:
    """Positions in the order of "[2,4]T(1,0)", an iota transposed, or of a plain list."""
    iota = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not iota:
        return np.array(_integers(text))
    shape = _integers(iota[1])
    ids = np.arange(math.prod(shape)).reshape(shape)
    return (ids.transpose(_integers(iota[2])) if iota[2] else ids).reshape(-1)


def _length(numbers: str) -> int:
    """The length of "3" or of "0:3", which are 3 both."""
    first, _, last = numbers.partition(":")
    return int(last or first) - int(first) + 1


def _rows(table: np.ndarray) -> Groups:
    return tuple(tuple(row) for row in table.tolist())


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))
