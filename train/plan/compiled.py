"""The compiler's answer: sizes and collectives, or the reason that compiling failed."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from train.plan.request import PlanRequest

Outcome = Literal["fits", "too large", "failed", "no compiler"]


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """The collectives of one class in one run of the program, over one device.

    Attributes:
        count: how many.
        bytes: Bytes of the whole arrays.
        sent_bytes: Bytes that a device sends, by the ring algorithm.
        far_bytes: Those of them in groups that span several slices (or GPU hosts).
        unbounded: how many of them a loop that ends on data has at its longest.
    """

    count: int = 0
    bytes: float = 0.0
    sent_bytes: float = 0.0
    far_bytes: float = 0.0
    unbounded: int = 0


@dataclass(frozen=True, kw_only=True)
class Share:
    """The memory traffic of one source, such as the MLPs, in one run, on one device.

    Attributes:
        forward, backward: bytes read and written; `forward` holds all that is not differentiated.
        kernels: how many kernels run.
    """

    forward: float = 0.0
    backward: float = 0.0
    kernels: int = 0

    @property
    def bytes(self) -> float:
        return self.forward + self.backward


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """The compiler's answer for one device; sizes in bytes.

    Attributes:
        outcome: "fits", "too large" for the memory, "failed" otherwise, or "no compiler".
        message: what the compiler said, where it is not "fits".
        peak: Peak memory, everything counted; of a program that is too large, the memory that it
            would need, where the compiler says so.
        limit: Memory that a program may have.
        parameters, optimizer, frozen, inputs: Memory that they take between updates.
        activations: Memory at the peak that the forward pass made and keeps.
        temporaries: everything else, the program itself included.
        traffic: read and written in one run.
        flops: FLOPs that the arithmetic of one run needs, all devices together.
        paper_flops: of the training step, FLOPs for one sample at the paper's image sizes.
        collectives: Traffic of collectives by class.
        sources: Shares of `traffic` by the part of the model that causes them, largest first.
        compiler: The compiler's name and release, "libtpu 0.0.52".
        lowering_seconds, compiling_seconds: Seconds that these took.
        notes: Dimensions that could not be divided as asked.
    """

    outcome: Outcome
    message: str = ""
    peak: float = 0.0
    limit: float = 0.0
    parameters: float = 0.0
    optimizer: float = 0.0
    frozen: float = 0.0
    inputs: float = 0.0
    activations: float = 0.0
    temporaries: float = 0.0
    traffic: float = 0.0
    flops: float = 0.0
    paper_flops: Mapping[int, float] = field(default_factory=dict)
    collectives: Mapping[str, Traffic] = field(default_factory=dict)
    sources: Mapping[str, Share] = field(default_factory=dict)
    compiler: str = ""
    lowering_seconds: float = 0.0
    compiling_seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def to_tree(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> "Compiled":
        collectives = {kind: Traffic(**one) for kind, one in tree["collectives"].items()}
        sources = {name: Share(**one) for name, one in tree.get("sources", {}).items()}
        return cls(
            **{
                **tree,
                "collectives": collectives,
                "sources": sources,
                "notes": tuple(tree["notes"]),
                "paper_flops": {int(side): flops for side, flops in tree["paper_flops"].items()},
            }
        )


Answer = tuple[PlanRequest, Compiled]

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"


@dataclass(frozen=True, kw_only=True)
class OutOfMemory:
    """The numbers in the compiler's out-of-memory error.

    Attributes:
        needed, available: bytes, or 0 where it does not say.
        largest: (bytes, shape, operation) of what it lists as largest.
    """

    needed: float
    available: float
    largest: tuple[tuple[float, str, str], ...] = ()

    def __str__(self) -> str:
        lines = [
            f"the program needs {gib(self.needed)} of the chip's memory, and {gib(self.available)} "
            "are free for it"
            if self.needed
            else "the program needs more than the chip's memory"
        ]
        if self.largest:
            lines.append("largest at the fullest moment:")
        lines += [f"  {gib(size):>10}  {shape:<28} {where}" for size, shape, where in self.largest]
        return "\n".join(lines)


def read_out_of_memory(message: str) -> OutOfMemory | None:
    """Parse XLA's out-of-memory error; None for another error."""
    if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
        return None
    used = re.search(rf"Used {_SIZE} of {_SIZE} hbm", message) or re.search(
        rf"required[^(]*\({_SIZE}\) exceeds available \w+ \({_SIZE}\)", message
    )
    largest = []
    for block in re.split(r"\n\s*\d+\. Size: ", message)[1:]:
        size = re.match(_SIZE, block)
        shape = re.search(r"Shape: (\w+\[[\d,]*\])", block)
        where = re.search(r'op_name="([^"]*)"', block) or re.search(r"Operator: (.*)", block)
        if size:
            described = where[1] if where else ""
            largest.append((_bytes(*size.groups()), shape[1] if shape else "", described[-70:]))
    needed, available = (_bytes(used[1], used[2]), _bytes(used[3], used[4])) if used else (0.0, 0.0)
    return OutOfMemory(needed=needed, available=available, largest=tuple(largest[:6]))


def gib(size: float) -> str:
    """Format bytes in GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"


def _bytes(number: str, unit: str) -> float:
    return float(number) * _UNITS[unit]
