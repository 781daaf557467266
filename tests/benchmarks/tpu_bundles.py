"""Cycles of a TPU kernel, from the instruction bundles that its compiler scheduled.

A bundle is what all units of the core are told to do in one cycle. libtpu writes the last schedule
of every kernel into a directory of its own with

    LIBTPU_INIT_ARGS="--xla_jf_dump_to=DIR --xla_jf_dump_llo_text=true
                      --xla_jf_dump_llo_pass_label_regex=final_bundles|deduplication"

Counting them, loops with their trips, gives the cycles that the core is busy; memory it waits for
comes on top. XLA's own `estimated_cycles` is no substitute: it is off by up to eight times, both
ways, and some instructions have none.
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

_BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s+([A-Z]{2})?\s*:\s*((?:>\s*)*)(.*)")
_LOOP_EXIT = re.compile(r"scmp\.\w+\.s32\.totalorder %\S+, (%\S+|-?\d+) /\* loop exit test")
_STAGE = re.compile(r"iteration index, stage = (\d+)")
_MATMUL = re.compile(r"vmatmul\.(\w+)\S*\.mxu(\d)")
# The branch at a loop's end takes effect this many bundles later.
_BRANCH_DELAY = 4


@dataclass(frozen=True)
class Kernel:
    """The schedule of one kernel.

    Attributes:
        cycles: bundles, loops counted with their trips; more where the matrix units need longer
            than the bundles that feed them.
        matmul_cycles: that the busiest matrix unit works.
        unknown_loops: loops whose trips are not in the text, counted once.
    """

    cycles: int
    matmul_cycles: int
    unknown_loops: int


@dataclass
class _Bundle:
    key: str
    depth: int
    text: str


@dataclass(frozen=True)
class _Loop:
    first: int
    last: int
    depth: int
    trips: int


def read_kernel(text: str) -> Kernel:
    """The schedule in a `*-final_bundles.txt`."""
    bundles = _bundles(text)
    loops, unknown = _loops(bundles)
    times, inner = [1] * len(bundles), [-1] * len(bundles)
    for number, loop in enumerate(sorted(loops, key=lambda one: one.depth)):
        body = range(loop.first, loop.last + 1)
        stages = [
            int(stage)
            for position in body
            if bundles[position].depth == loop.depth
            for stage in _STAGE.findall(bundles[position].text)
        ]
        # A software-pipelined loop idles while its pipeline fills: that many trips do no work.
        trips = max(loop.trips - max(stages, default=0), 1)
        for position in body:
            times[position] *= trips
            inner[position] = number
    issued: Counter[int] = Counter()
    matmul: dict[int, Counter[str]] = defaultdict(Counter)
    for bundle, count, loop in zip(bundles, times, inner, strict=True):
        issued[loop] += count
        for dtype, unit in _MATMUL.findall(bundle.text):
            # Rows of a tile that go in at one a cycle: 16 of bfloat16, 8 of 32 bits.
            matmul[loop][unit] += count * (16 if dtype == "bf16" else 8)
    busiest = {loop: max(matmul[loop].values(), default=0) for loop in issued}
    return Kernel(
        cycles=sum(max(count, busiest[loop]) for loop, count in issued.items()),
        matmul_cycles=sum(busiest.values()),
        unknown_loops=unknown,
    )


def read_kernels(directory: Path) -> dict[str, Kernel]:
    """Every kernel of a dump by the name of its HLO instruction, shared ones under each name."""
    files = {}
    for path in directory.glob("*final_bundles.txt"):
        found = re.match(r"\d+-(.*)-\d+-final_bundles", path.name)
        if found and "schedule-analysis" not in path.name:
            files[found[1]] = path
    kernels = {name: read_kernel(path.read_text(errors="replace")) for name, path in files.items()}
    for path in directory.glob("*deduplication-map.txt"):
        original = ""
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith("key:"):
                original = line[4:].strip()
            elif line.startswith("  ") and original in kernels:
                kernels.setdefault(line.strip(), kernels[original])
    return kernels


def _bundles(text: str) -> list[_Bundle]:
    bundles: list[_Bundle] = []
    for line in text.splitlines():
        found = _BUNDLE.match(line)
        if found:
            bundles.append(_Bundle(found[1] or "", found[2].count(">"), found[3]))
        elif bundles:
            bundles[-1].text += " " + line.strip()
    return bundles


def _loops(bundles: list[_Bundle]) -> tuple[list[_Loop], int]:
    """Loops with their trips, and how many have none that the text tells."""
    loops: list[_Loop] = []
    unknown = 0
    opened: list[tuple[int, int]] = []
    for position, bundle in enumerate(bundles):
        busy = re.sub(r"/\*.*?\*/", "", bundle.text).strip("{} ;")
        while opened and busy and bundle.depth < opened[-1][1]:
            opened.pop()
            unknown += 1
        if bundle.key == "LB":
            opened.append((position, bundle.depth))
        test = _LOOP_EXIT.search(bundle.text)
        if test and opened:
            first, depth = opened.pop()
            if test[1].startswith("%"):
                unknown += 1
                continue
            branch = position
            while branch < len(bundles) - 1 and "sbr.rel (!" not in bundles[branch].text:
                branch += 1
            last = min(branch + _BRANCH_DELAY, len(bundles) - 1)
            loops.append(_Loop(first, last, depth, int(test[1])))
    return loops, unknown + len(opened)
