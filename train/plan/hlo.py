"""A parser of optimised HLO text: computations, instructions, loops."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*)$")
_OPCODE = re.compile(r"\s*([\w-]+)\(")
_COMMENT = re.compile(r"/\*.*?\*/")
_NAME = re.compile(r"%([\w.-]+)")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "c64": 64, "c128": 128}


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: without its percent sign.
        shape: the printed type of its value, layouts included.
        opcode: such as "all-reduce" or "fusion".
        operands: names of the operands.
        arguments: the text between the parentheses.
        attributes: everything after the operands.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    arguments: str
    attributes: str

    def calls(self, attribute: str) -> tuple[str, ...]:
        """Names of the computations in `attribute=%name` or `attribute={%one, %other}`."""
        found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%?[\w.-]+)", self.attributes)
        return tuple(re.findall(r"[\w.-]+", found[1])) if found else ()

    def integer(self, attribute: str) -> int | None:
        found = re.search(rf'\b{attribute}"?[=:]"?(-?\d+)', self.attributes)
        return int(found[1]) if found else None

    @property
    def operation(self) -> str:
        """The jax operation that it came from, or an empty text."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclass(frozen=True)
class Computation:
    """A named list of instructions; the last one marked ROOT is its value."""

    name: str
    instructions: Mapping[str, Instruction]
    root: str

    def through_copies(self, name: str) -> Instruction | None:
        """The instruction that `name` is a copy of."""
        found = self.instructions.get(name)
        while found is not None and found.opcode in ("copy", "bitcast"):
            found = self.instructions.get(found.operands[0])
        return found

    def constant(self, name: str) -> int | None:
        """The integer that `name` always is."""
        found = self.through_copies(name)
        if found is None or found.opcode != "constant":
            return None
        return int(found.arguments) if re.fullmatch(r"-?\d+", found.arguments) else None


@dataclass(frozen=True)
class HloModule:
    """A compiled program.

    Attributes:
        computations: Computations by name.
        entry: name of the one that runs first.
        devices: partitions times replicas that it is compiled for.
    """

    computations: Mapping[str, Computation]
    entry: str
    devices: int

    @cached_property
    def trip_counts(self) -> Mapping[str, int | None]:
        """The trip count of each `while` instruction; None if it depends on data."""
        return {
            instruction.name: _trip_count(self, computation, instruction)
            for computation in self.computations.values()
            for instruction in computation.instructions.values()
            if instruction.opcode == "while"
        }


def parse_hlo(text: str) -> HloModule:
    """Read the text of an optimised HLO module.

    Raises:
        ValueError: it is not one.
    """
    header = text[: text.find("\n")]
    computations: dict[str, Computation] = {}
    entry = ""
    lines: dict[str, Instruction] = {}
    name = root = ""
    for line in text.splitlines():
        if not name:
            found = _COMPUTATION.match(line)
            if found:
                name, lines, root = found[2], {}, ""
                entry = name if found[1] else entry
        elif line.startswith("}"):
            computations[name] = Computation(name, lines, root)
            name = ""
        else:
            found = _INSTRUCTION.match(line)
            instruction = _instruction(found[2], found[3]) if found else None
            if found and instruction:
                lines[instruction.name] = instruction
                root = instruction.name if found[1] else root
    if not header.startswith("HloModule") or entry not in computations:
        raise ValueError(
            f"not the text of a compiled HLO module: it starts with {header[:60]!r}; "
            "pass what `jax.jit(f).lower(...).compile().as_text()` returns"
        )
    counts = [re.search(rf"\b{key}=(\d+)", header) for key in ("num_partitions", "replica_count")]
    return HloModule(computations, entry, math.prod(int(found[1]) for found in counts if found))


def elements(shape: str) -> tuple[str, ...]:
    """The shapes that a printed tuple shape is made of; of another shape, itself."""
    if not shape.startswith("("):
        return (shape,)
    found, depth, start = [], 0, 1
    for position, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or (letter == ")" and depth == 0):
            found.append(shape[start:position].strip())
            start = position + 1
    return tuple(found)


def bytes_of(shape: str) -> int:
    """Bytes of the arrays in a printed shape, without the padding of their layouts."""
    return sum(
        (math.prod(int(n) for n in re.findall(r"\d+", sizes)) * _bits(dtype) + 7) // 8
        for dtype, sizes, _ in _ARRAY.findall(shape)
    )


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    found = re.match(r"[a-z]+(\d+)", dtype)
    if not found:
        raise ValueError(f"the size of HLO type {dtype!r} is not known here: add it to _BITS")
    return int(found[1])


def _instruction(name: str, rest: str) -> Instruction | None:
    rest = _COMMENT.sub("", rest)
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    found = _OPCODE.match(rest, end)
    if end <= 0 or not found:
        return None
    closing = _closing(rest, found.end() - 1)
    arguments = rest[found.end() : closing]
    return Instruction(
        name=name,
        shape=rest[:end],
        opcode=found[1],
        operands=tuple(_NAME.findall(arguments)),
        arguments=arguments,
        attributes=rest[closing + 1 :],
    )


def _closing(text: str, start: int) -> int:
    """Position of the parenthesis that closes the one at `start`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    return len(text)


def _trip_count(module: HloModule, outer: Computation, loop: Instruction) -> int | None:
    """XLA's own count where it is printed, else that of a loop which counts up to a constant."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    condition = module.computations[loop.calls("condition")[0]]
    body = module.computations[loop.calls("body")[0]]
    test = condition.instructions[condition.root]
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    counter = condition.through_copies(test.operands[0])
    limit = condition.constant(test.operands[1])
    carried, returned = outer.through_copies(loop.operands[0]), body.instructions[body.root]
    index = counter.integer("index") if counter else None
    if limit is None or index is None or carried is None or returned.opcode != "tuple":
        return None
    start = outer.constant(carried.operands[index]) if carried.opcode == "tuple" else None
    added = body.through_copies(returned.operands[index])
    if start is None or added is None or added.opcode != "add":
        return None
    steps = [body.constant(name) for name in added.operands]
    step = next((number for number in steps if number), None)
    return None if step is None or step < 1 else max(0, -((start - limit) // step))
