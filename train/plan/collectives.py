"""Collectives of a compiled program: their sizes, groups and counts.

    found = collectives(jax.jit(step).lower(state, batch).compile().as_text())
    assert not [one for one in found if one.kind == "all-gather"]
    totals(found)["all-reduce"].bytes

XLA alone decides which collectives a sharded program has, so this is what a budget can be written
against. Backends differ: TPU and GPU compilers merge an all-reduce and the slice of it into a
reduce-scatter, and overlap a collective with the work around it; the CPU compiler does neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from train.plan.hlo import (
    Computation,
    HloModule,
    Instruction,
    bytes_of,
    elements,
    parse_hlo,
)
from train.plan.replica_groups import replica_groups

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


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective operation of a compiled program.

    Attributes:
        kind: its class.
        name: of the HLO instruction.
        bytes: of the whole array, as one device holds it before it is scattered or after it is
            gathered; for a permutation what one device sends.
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
        # Of a start, (operands, results, context...); the all-reduce's alone has results only.
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
