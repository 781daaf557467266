"""Collectives of a compiled program: their sizes, groups and counts.

    found = collectives(jax.jit(step).lower(state, batch).compile().as_text())
    assert not [one for one in found if one.kind == "all-gather"]
    totals(found)["all-reduce"].bytes

XLA alone decides which collectives a sharded program has, so this is what a budget can be written
against. Backends differ: TPU and GPU compilers merge an all-reduce and the slice of it into a
reduce-scatter, and overlap a collective with the work around it; the CPU compiler does neither.

Groups of devices have these notations:

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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from train.plan.hlo import (
    Computation,
    HloModule,
    Instruction,
    bytes_of,
    elements,
    parse_hlo,
)

Groups = tuple[tuple[int, ...], ...]

_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)")
_MESH = re.compile(
    r"replica_groups=@?mesh\[([^\]]*)\](?:, device_ids=\(((?:[^()]|\([^()]*\))*)\))? \{([^}]*)\}"
)
# TPU slices: the program is compiled for one of them, and the devices of the others count on.
_SLICES = re.compile(r'_xla_megascale_target="\{([\d,:]+)\}x')
_AXIS = re.compile(r"'?([\w.-]+)'?(?::\((\d+)\)(\d+))?")


Kind = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Opcodes, among them those of which a class is meant that has another name.
_KINDS: Mapping[str, Kind] = {
    **{kind: kind for kind in KINDS},
    "ragged-all-to-all": "all-to-all",
    "collective-broadcast": "collective-permute",
}
# Opcodes that run other computations, and their attributes that name them.
_CALLS: Mapping[str, tuple[str, ...]] = {
    "call": ("to_apply",),
    "fusion": ("calls",),
    "async-start": ("calls",),
    # Collectives that the TPU v7x compiler gives to the sparse cores.
    "call-start": ("to_apply",),
    "conditional": ("branch_computations", "true_computation", "false_computation"),
}
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


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


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective operation of a compiled program.

    Attributes:
        kind: its class.
        name: Name of the HLO instruction.
        bytes: Bytes of the whole array, as one device holds it before it is scattered or after
            it is gathered; for a permutation, bytes that one device sends.
        groups: devices that talk to each other, one tuple a group, as positions in the mesh's
            devices flattened. Of a permutation, (sender, receiver) pairs.
        loops: names of the `while` instructions around it, the outermost first.
        trips: how often it runs, all loops counted; None where one of them ends on data.
        overlapped: whether the compiler started it early and does other work meanwhile.
        operation: the jax operation it belongs to, "jit(step)/.../dot_general".
    """

    kind: Kind
    name: str
    bytes: int
    groups: tuple[tuple[int, ...], ...]
    loops: tuple[str, ...] = ()
    trips: int | None = 1
    overlapped: bool = False
    operation: str = ""

    @property
    def in_loop(self) -> bool:
        return bool(self.loops)

    @property
    def group_size(self) -> int:
        return max(map(len, self.groups))

    @property
    def sent_bytes(self) -> float:
        """Bytes that one device sends per execution, by the ring algorithm."""
        others = (self.group_size - 1) / self.group_size
        factor = {"all-reduce": 2 * others, "collective-permute": 1.0}.get(self.kind, others)
        return factor * self.bytes

    def crosses(self, devices_per_slice: int) -> bool:
        """Whether a group joins devices of different slices (or hosts) with this many devices."""
        return any(len({device // devices_per_slice for device in one}) > 1 for one in self.groups)


@dataclass(frozen=True, kw_only=True)
class Total:
    """Collectives of one class, loops counted: one whose loop ends on data counts once.

    Attributes:
        count: how many run.
        bytes, sent_bytes: summed over them, as in `Collective`.
        unbounded: how many sit in a loop that ends on data.
    """

    count: int = 0
    bytes: int = 0
    sent_bytes: float = 0.0
    unbounded: int = 0


def collectives(hlo: str | HloModule) -> tuple[Collective, ...]:
    """All collectives of an optimised module, in the order of its text.

    One that a backend prints in pieces (start and done; start, continuation and done inside fused
    computations) is found once. A computation that is called twice is found twice; groups of a
    single device are left out.

    Raises:
        ValueError: not the text of a compiled module, an exchange between slices of no known
            class, or a collective that is reached by no known kind of call.
    """
    module = parse_hlo(hlo) if isinstance(hlo, str) else hlo
    reached: set[str] = set()
    found = tuple(_found(module, module.entry, _Place(), _started(module), reached))
    for name, computation in module.computations.items():
        missed = [one.name for one in computation.instructions.values() if _kind(one)]
        if missed and name not in reached:
            raise ValueError(
                f"{missed[0]} is in computation {name}, and how that is called is not known here: "
                "add the opcode that calls it to _CALLS"
            )
    return tuple(one for one in found if one.group_size > 1)


def totals(found: Iterable[Collective]) -> dict[Kind, Total]:
    """Totals by class; classes that do not occur are left out."""
    sums: dict[Kind, Total] = {}
    for one in found:
        total, times = sums.get(one.kind, Total()), 1 if one.trips is None else one.trips
        sums[one.kind] = Total(
            count=total.count + times,
            bytes=total.bytes + times * one.bytes,
            sent_bytes=total.sent_bytes + times * one.sent_bytes,
            unbounded=total.unbounded + (one.trips is None),
        )
    return {kind: sums[kind] for kind in KINDS if kind in sums}


@dataclass(frozen=True, kw_only=True)
class _Place:
    """The place of a computation: its loops, its trip count, and the instruction that calls it."""

    loops: tuple[str, ...] = ()
    trips: int | None = 1
    caller: Instruction | None = None

    def inside(self, loop: Instruction, count: int | None) -> _Place:
        times = None if self.trips is None or count is None else self.trips * count
        return _Place(loops=(*self.loops, loop.name), trips=times)


def _found(
    module: HloModule, name: str, place: _Place, started: frozenset[int | None], reached: set[str]
) -> Iterator[Collective]:
    reached.add(name)
    computation = module.computations[name]
    for instruction in computation.instructions.values():
        kind = _kind(instruction)
        # The TPU compiler repeats a collective in each fused computation that runs beside it.
        repeated = instruction.integer("channel_id") in started and not _starts(computation)
        if kind and not repeated:
            yield _collective(module, computation, instruction, kind, place)
        for called, where in _called(module, instruction, place):
            yield from _found(module, called, where, started, reached)


def _called(
    module: HloModule, instruction: Instruction, place: _Place
) -> Iterator[tuple[str, _Place]]:
    """Computations that run as part of an instruction."""
    if instruction.opcode == "while":
        inside = place.inside(instruction, module.trip_counts[instruction.name])
        yield from ((name, inside) for name in instruction.calls("condition"))
        yield from ((name, inside) for name in instruction.calls("body"))
        return
    attributes = _CALLS.get(instruction.opcode, ("called_computations",))
    where = replace(place, caller=instruction)
    yield from ((name, where) for key in attributes for name in instruction.calls(key))


def _collective(
    module: HloModule, computation: Computation, instruction: Instruction, kind: Kind, place: _Place
) -> Collective:
    groups = replica_groups(instruction.attributes, module.devices)
    began = instruction.opcode.endswith("-start")
    caller = place.caller.opcode if place.caller else ""
    shape = instruction.shape
    if instruction.opcode == "send":
        began, shape = True, elements(shape)[0]
    elif began and kind != "all-reduce":
        # A start has (operands, results, context...); the all-reduce's alone has results only.
        shape = elements(shape)[1]
    size = bytes_of(shape)
    if kind == "reduce-scatter":
        size *= max(map(len, groups))
    elif kind == "all-reduce" and caller == "fusion" and _only_sliced(computation, instruction):
        kind = "reduce-scatter"
    operation = instruction.operation or (place.caller.operation if place.caller else "")
    return Collective(
        kind=kind,
        name=instruction.name,
        bytes=size,
        groups=groups,
        loops=place.loops,
        trips=place.trips,
        overlapped=began or caller.endswith("-start") or _starts(computation),
        operation=operation,
    )


def _kind(instruction: Instruction) -> Kind | None:
    if instruction.opcode == "send":
        # Between TPU slices the hosts exchange what each device hands them.
        exchange = _BETWEEN_SLICES.search(instruction.attributes)
        if exchange is None:
            return None
        kind = _KINDS.get(exchange[1].lower().replace("_", "-"))
        if kind is None:
            raise ValueError(f"{instruction.name}: {exchange[1]} between slices is none of {KINDS}")
        return kind
    return _KINDS.get(instruction.opcode.removesuffix("-start"))


def _started(module: HloModule) -> frozenset[int | None]:
    """Channels of the collectives that begin in one fused computation and end in another."""
    return frozenset(
        instruction.integer("channel_id")
        for computation in module.computations.values()
        if _starts(computation)
        for instruction in computation.instructions.values()
        if _kind(instruction)
    )


def _starts(computation: Computation) -> bool:
    return any(
        'custom_call_target="AsyncCollectiveStart"' in instruction.attributes
        for instruction in computation.instructions.values()
    )


def _only_sliced(computation: Computation, reduced: Instruction) -> bool:
    """Whether a fused computation keeps one device's slice alone: the TPU's reduce-scatter."""
    users = [one for one in computation.instructions.values() if reduced.name in one.operands]
    return bool(users) and all(one.opcode == "dynamic-slice" for one in users)
