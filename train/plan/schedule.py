"""Peak memory and memory traffic of a compiled, scheduled program.

Read from the optimised HLO, whose instructions stand in the order in which they run. Buffers in
the TPU's on-chip memory (layouts with S(1) and above) are no part of either.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from train.plan.hlo import (
    Computation,
    HloModule,
    Instruction,
    bytes_of,
    elements,
)

# Instructions whose value is their operand's own memory.
_VIEWS = {"bitcast", "optimization-barrier", "opt-barrier", "while", "tuple", "get-tuple-element"}
_FREE = {"parameter", "constant", "iota", "after-all", "partition-id", "replica-id"}
_BLAS = re.compile(r'custom_call_target="__cu(blas|dnn)')
# Instructions that touch a part of their first operand alone.
_SLICES = {"dynamic-slice", "gather", "dynamic-update-slice"}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([\d,]*)((?::|\().*?)?\})?")


@dataclass(frozen=True)
class Live:
    """The contents of memory at its peak, in bytes, without the arguments.

    Attributes:
        forward: made by the forward pass and kept: the activations.
        other: everything else.
    """

    forward: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        return self.forward + self.other

    def __add__(self, more: "Live") -> "Live":
        return Live(self.forward + more.forward, self.other + more.other)


@dataclass(eq=False)
class _Buffer:
    live: Live
    last_use: int = -1


@dataclass
class _Tracker:
    """The buffers behind each value of a computation, a nested list as its tuples are."""

    values: dict[str, Any] = field(default_factory=dict)
    buffers: dict[int, list[_Buffer]] = field(default_factory=dict)

    def define(self, number: int, instruction: Instruction) -> None:
        operands = [self.values.get(name, []) for name in instruction.operands]
        opcode = instruction.opcode
        if opcode == "get-tuple-element":
            whole, index = operands[0] if operands else [], instruction.integer("index") or 0
            value = whole[index] if isinstance(whole, list) and index < len(whole) else whole
        elif opcode == "tuple":
            value = operands
        elif opcode in _VIEWS or opcode.endswith("-done"):
            value = operands[0] if operands else []
        elif opcode in _FREE:
            value = []
        else:
            kind = _is_forward(instruction.operation)
            made = []
            for shape in elements(instruction.shape):
                size = memory_bytes(shape)
                made.append(_Buffer(Live(size, 0) if kind else Live(0, size)))
            self.buffers[number] = made
            value = made if instruction.shape.startswith("(") else made[0]
        for operand in operands:
            for buffer in _leaves(operand):
                buffer.last_use = number
        self.values[instruction.name] = value


def peak(module: HloModule, name: str = "") -> Live:
    """Find the peak of a computation, by default the entry, loops within it included."""
    computation = module.computations[name or module.entry]
    tracker = _Tracker()
    instructions = list(computation.instructions.values())
    for number, instruction in enumerate(instructions):
        tracker.define(number, instruction)
    ending: dict[int, list[_Buffer]] = {}
    for number, made in tracker.buffers.items():
        for buffer in made:
            ending.setdefault(max(buffer.last_use, number), []).append(buffer)
    now, most = Live(), Live()
    for number, instruction in enumerate(instructions):
        for buffer in tracker.buffers.get(number, ()):
            now += buffer.live
        inside = Live()
        if instruction.opcode == "while":
            inside = peak(module, instruction.calls("body")[0])
        most = max(most, now + inside, key=lambda live: live.total)
        for buffer in ending.get(number, ()):
            now += Live(-buffer.live.forward, -buffer.live.other)
    return most


def traffic(module: HloModule, turns: Mapping[str, int] | None = None) -> float:
    """Bytes that one run reads and writes, each operand and result of a kernel once.

    Of an operand that a kernel takes slices of, and of a result that it writes a slice into, the
    slice counts. Loops count with their trips.

    Args:
        turns: trips of `while` instructions that end on data; of those left out, one.
    """
    return sum(
        times * kernel_bytes(module, one, shapes)
        for one, shapes, times in kernels_of(module, turns=turns)
    )


def kernel_bytes(module: HloModule, kernel: Instruction, operands: Sequence[str]) -> int:
    """Bytes that an instruction reads and writes, from the shapes of its operands."""
    if kernel.opcode == "slice-done":
        # Its operand names the whole source, and the slice may come to the chip itself.
        return memory_bytes(re.sub(r"S\(\d+\)", "", kernel.shape))
    if kernel.opcode.endswith("-done") and operands[0].startswith("("):
        # Background copies: the operand names both sides, the result among them.
        return memory_bytes(operands[0])
    sizes = [memory_bytes(shape) for shape in operands]
    result = memory_bytes(kernel.shape)
    if kernel.opcode in ("dynamic-slice", "gather"):
        return result + min(sizes[0], result) + sum(sizes[1:])
    if kernel.opcode == "dynamic-update-slice":
        return 2 * min(sizes[1], result) + sum(sizes[2:])
    if kernel.opcode == "custom-call" and _BLAS.search(kernel.attributes):
        # The last result is room to work in, of which most is never touched.
        *results, workspace = elements(kernel.shape)
        if results and workspace.startswith("s8["):
            result -= memory_bytes(workspace)
    if kernel.opcode != "fusion":
        return result + sum(sizes)
    inside = module.computations[kernel.calls("calls")[0]]
    for one in inside.instructions.values():
        if one.opcode == "parameter" and one.arguments.isdigit():
            number = int(one.arguments)
            sizes[number] = min(sizes[number], _read(module, inside, one))
    return _written(inside, kernel) + sum(sizes)


def _read(module: HloModule, inside: Computation, parameter: Instruction) -> int:
    """Bytes that a fusion reads of a parameter; of one that it only takes slices of, the slices.

    Fusions within it may take them.
    """
    whole, taken, name = memory_bytes(parameter.shape), 0, parameter.name
    users = [one for one in inside.instructions.values() if name in one.operands]
    for use in users:
        if use.opcode == "fusion":
            called = module.computations[use.calls("calls")[0]]
            taken += sum(
                _read(module, called, one)
                for one in called.instructions.values()
                if one.opcode == "parameter" and use.operands[int(one.arguments)] == name
            )
        elif use.opcode in _SLICES and use.operands.index(name) == 0:
            # What an update does not write stays where it is.
            taken += 0 if "update" in use.opcode else memory_bytes(use.shape)
        else:
            return whole
    return min(whole, taken) if users else whole


def _written(inside: Computation, kernel: Instruction) -> int:
    """Bytes of a fusion's results; of one that is updated in place, those of the update."""
    root = inside.instructions[inside.root]
    values = root.operands if root.opcode == "tuple" else (root.name,)
    written = 0
    for value, shape in zip(values, elements(kernel.shape), strict=False):
        made = inside.through_copies(value)
        size = memory_bytes(shape)
        if made is not None and made.opcode == "dynamic-update-slice":
            update = inside.instructions.get(made.operands[1])
            size = min(size, memory_bytes(update.shape)) if update else size
        written += size
    return written


def memory_bytes(shape: str) -> int:
    """Bytes of the arrays of a printed shape in device memory, filled up to their tiles."""
    total = 0
    for found in _ARRAY.finditer(shape):
        layout = found[4] or ""
        if re.search(r"S\([1-9]", layout):
            continue
        sizes = [int(size) for size in found[2].split(",") if size]
        minor_to_major = [int(axis) for axis in (found[3] or "").split(",") if axis]
        tile = re.search(r"T\(([\d,]+)\)", layout)
        if tile and minor_to_major:
            steps = [int(step) for step in tile[1].split(",")]
            for axis, step in zip(minor_to_major, reversed(steps), strict=False):
                sizes[axis] = -(-sizes[axis] // step) * step
        total += math.prod(sizes) * bytes_of(f"{found[1]}[8]") // 8
    return total


def kernels_of(
    module: HloModule, name: str = "", times: int = 1, turns: Mapping[str, int] | None = None
) -> Iterator[tuple[Instruction, list[str], int]]:
    """The instructions that take time, with the shapes of their operands and how often they run.

    Args:
        name: The computation that they and their loops are in; by default the entry.
        turns: trips of `while` instructions that end on data; of those left out, one.
    """
    computation: Computation = module.computations[name or module.entry]
    shapes = {one.name: one.shape for one in computation.instructions.values()}
    for one in computation.instructions.values():
        if one.opcode == "while":
            trips = module.trip_counts[one.name]
            trips = (turns or {}).get(one.name, 1) if trips is None else trips
            for called in (*one.calls("condition"), *one.calls("body")):
                yield from kernels_of(module, called, times * trips, turns)
        elif one.opcode == "conditional":
            # One branch runs: the one that moves most is the most that it may take.
            branches = [list(kernels_of(module, name, times, turns)) for name in _branches(one)]
            yield from max(
                branches,
                key=lambda found: sum(
                    n * kernel_bytes(module, k, shapes) for k, shapes, n in found
                ),
            )
        elif one.opcode not in _VIEWS | _FREE and not one.opcode.endswith("-start"):
            yield one, [shapes.get(operand, "") for operand in one.operands], times


def endless(module: HloModule, name: str = "") -> list[Instruction]:
    """The `while` instructions that end on data and are in no other loop, in order."""
    found = []
    for one in module.computations[name or module.entry].instructions.values():
        if one.opcode == "while" and module.trip_counts[one.name] is None:
            found.append(one)
        for branch in _branches(one):
            found += endless(module, branch)
    return found


def _branches(one: Instruction) -> list[str]:
    if one.opcode != "conditional":
        return []
    names = ("branch_computations", "true_computation", "false_computation")
    return [called for name in names for called in one.calls(name)]


def is_backward(operation: str) -> bool:
    """Whether a jax operation belongs to a backward pass."""
    return "transpose(" in operation


def _is_forward(operation: str) -> bool:
    return "jvp(" in operation and not is_backward(operation)


def _leaves(value: Any) -> Iterator[_Buffer]:
    if isinstance(value, _Buffer):
        yield value
    else:
        for item in value:
            yield from _leaves(item)
