"""What the machine is, and what else it is doing. Linux: reads /proc."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.rivals.samples import Sample

# Columns of a `cpu` line of /proc/stat in which a processor was idle (idle, iowait), and the guest
# time that user time includes already.
_IDLE_COLUMNS = (3, 4)
_COUNTED_COLUMNS = 8
_PACKAGES = ("jax", "torch", "transformers", "timm", "onnxruntime", "ctranslate2")


@dataclass(frozen=True)
class Clock:
    """A moment in wall time, in this process's processor time and in the whole machine's."""

    wall: float
    own: float
    busy: float

    @classmethod
    def now(cls) -> Clock:
        busy = busy_seconds(Path("/proc/stat").read_text())
        return cls(wall=time.perf_counter(), own=time.process_time(), busy=busy)

    def until_now(self) -> Sample:
        """What has passed since; /proc/stat counts in hundredths of a second."""
        end = Clock.now()
        wall, own = end.wall - self.wall, end.own - self.own
        others = max(0.0, end.busy - self.busy - own) / (wall * (os.cpu_count() or 1))
        return Sample(wall=wall, cpu=own, others=min(others, 1.0))


def busy_seconds(stat: str) -> float:
    """Seconds in which processors were not idle since the machine started, from /proc/stat."""
    line = stat.split("\n", 1)[0]
    ticks = [int(number) for number in line.split()[1 : 1 + _COUNTED_COLUMNS]]
    idle = sum(ticks[column] for column in _IDLE_COLUMNS)
    return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK")


def describe() -> dict[str, str]:
    """The processor and the versions of what is installed."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"processor": _processor(), **versions}


def available_threads() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0))


def keep_to(threads: int) -> None:
    """Confine this process, and the threads it will start, to `threads` processors."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
