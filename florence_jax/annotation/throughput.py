"""How fast annotations are made: what each call of a run did, in how long, and the device's share.

Every call leaves a file in `throughput/` of the output, whichever process or host it was, and
`statistics.json` has them all.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from florence_jax.runtime.atomic_file import write_once

FOLDER = "throughput"
_KINDS = ("texts", "regions", "ocr", "phrases")


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """What one call did.

    Attributes:
        images: rows written, those with errors included, and `annotations` of all kinds in them.
        tokens: generated for that, padding not counted.
        seconds: from the first block to the last, compilation included.
        device_busy: the share of the time with the device at work, 0..1, counted from the first
            answer on (`florence_jax.inference.device_stats`).
        device: its kind, and `devices` how many worked together.
        ended: UTC.
    """

    images: int
    annotations: int
    tokens: int
    seconds: float
    device_busy: float
    device: str
    devices: int
    ended: str = dataclasses.field(
        default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds")
    )

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        rates = {
            f"{name}_per_second": round(getattr(self, name) / self.seconds, 3)
            for name in ("images", "annotations", "tokens")
        }
        seconds, busy = round(self.seconds, 3), round(self.device_busy, 4)
        return dataclasses.asdict(self) | {"seconds": seconds, "device_busy": busy} | rates

    def describe(self) -> str:
        """For a person."""
        return (
            f"{self.images} images in {self.seconds:.1f} s: {self.annotations} annotations "
            f"({self.annotations / self.seconds:.2f} annotations/s, "
            f"{self.images / self.seconds:.2f} images/s, {self.tokens / self.seconds:.0f} "
            f"tokens/s, compilation included); {self.devices} x {self.device} had work for "
            f"{self.device_busy:.1%} of the time"
        )


class AnnotationCount:
    """Counts what is in rows: the `after_block` of a run."""

    def __init__(self) -> None:
        self.total = 0
        self._lock = threading.Lock()

    def __call__(self, items: object, rows: Sequence[Mapping[str, Any]], pool: object) -> None:
        del items, pool
        count = sum(len(row.get(kind, ())) for row in rows for kind in _KINDS)
        with self._lock:
            self.total += count


def save_throughput(measured: Throughput, directory: Path) -> None:
    """Add a call to those of an output directory."""
    folder = directory / FOLDER
    folder.mkdir(exist_ok=True)
    name = f"{measured.ended.replace(':', '')}-{secrets.token_hex(4)}.json"
    write_once(folder / name, json.dumps(measured.record(), indent=1).encode() + b"\n")


def saved_throughput(directory: Path) -> Iterator[dict[str, Any]]:
    """Every call's record, the earliest first; none where nothing was annotated."""
    for path in sorted((directory / FOLDER).glob("*.json")):
        yield json.loads(path.read_bytes())
