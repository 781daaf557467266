"""Write cached features; each file is there whole or not at all."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from florence_jax.runtime.atomic_dir import sync
from florence_jax.runtime.directory_lock import directory_lock
from florence_jax.training.cached_features.fingerprint import Origin
from florence_jax.training.cached_features.store import (
    ORIGIN,
    FeatureStore,
    checksum,
    described,
)

# Of one file: what a kill loses, and what waits in memory to be written.
FILE_BYTES = 128 * 2**20


class FeatureWriter:
    """Adds to a directory's features. Get one from `filling`."""

    def __init__(self, finished: FeatureStore, file_bytes: int):
        self._finished = finished
        self._rows_of_a_file = max(file_bytes // finished.origin.nbytes, 1)
        self._waiting: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
        self._written: set[bytes] = set()

    def __len__(self) -> int:
        """Images whose features are on disk."""
        return len(self._finished) + len(self._written)

    def __contains__(self, key: bytes) -> bool:
        return key in self._finished or key in self._written or key in self._waiting

    def add(self, key: bytes, size: tuple[int, int], features: np.ndarray) -> None:
        """One image's features; on disk once there are enough for a file, or with `flush`.

        Args:
            size: (width, height) in pixels of the image as shown.
            features: of the origin's shape and dtype.

        Raises:
            OSError: the disk is full, or the system refuses for another reason.
        """
        self._waiting[key] = np.array(size, np.int32), np.ascontiguousarray(features)
        if len(self._waiting) >= self._rows_of_a_file:
            self.flush()

    def flush(self) -> None:
        """What waits is on disk when this returns.

        Raises:
            OSError: see `add`.
        """
        if not self._waiting:
            return
        origin, directory = self._finished.origin, self._finished.directory
        keys = b"".join(self._waiting)
        sums = [checksum(origin, key, *record) for key, record in self._waiting.items()]
        sizes, features = zip(*self._waiting.values(), strict=True)
        content = save(
            {
                "keys": np.frombuffer(keys, np.uint8).reshape(-1, 32),
                "sizes": np.stack(sizes),
                "checksums": np.frombuffer(b"".join(sums), np.uint8).reshape(-1, 32),
                "features": np.stack(features),
            }
        )
        name = hashlib.sha256(keys).hexdigest()[:16]
        _write(directory / f"{name}.safetensors", content)
        self._written.update(self._waiting)
        self._waiting.clear()


@contextlib.contextmanager
def filling(
    directory: Path, origin: Origin, *, file_bytes: int = FILE_BYTES
) -> Iterator[FeatureWriter]:
    """The writer of a directory, which is created; what waits at the end is written.

    Raises:
        DirectoryInUseError: another process is filling it.
        FeaturesError: it holds features of another origin.
        OSError: it cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with directory_lock(directory):
        for leftover in directory.glob(".*.saving"):
            leftover.unlink()
        if not (directory / ORIGIN).exists():
            _write(directory / ORIGIN, json.dumps(described(origin), indent=1).encode())
        writer = FeatureWriter(FeatureStore(directory, origin), file_bytes)
        yield writer
        writer.flush()


def _write(path: Path, content: bytes) -> None:
    aside = path.with_name(f".{path.name}.saving")
    try:
        aside.write_bytes(content)
        sync(aside)
        aside.rename(path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)
