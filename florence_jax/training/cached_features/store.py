"""A directory of image features, found by the content of the image and verified when read.

    DIR/features.json        the model that the features come from (`Origin`)
    DIR/<hash>.safetensors   some images: keys uint8[N, 32], sizes int32[N, 2], checksums
                             uint8[N, 32] and features [N, rows, columns, channels]

A checksum covers the origin, the image's key and size, and the features: no record is taken for
another's, whatever happens to the files. Each file is there whole or not at all.
"""

import contextlib
import functools
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from PIL import Image
from safetensors.numpy import save

from florence_jax.checkpoint import CheckpointError
from florence_jax.checkpoint.pytorch.weights import open_safetensors
from florence_jax.config import DaViTConfig
from florence_jax.matmul_precision import MatmulPrecision
from florence_jax.processing import ImageConfig, load_image
from florence_jax.runtime.atomic_dir import sync
from florence_jax.runtime.directory_lock import directory_lock
from florence_jax.runtime.text_file import MAX_SETTINGS_BYTES, read_json
from florence_jax.training.config_loader import differences, to_tree
from florence_jax.training.run_config import Dtype

FORMAT = "florence-jax-features-1"
ORIGIN = "features.json"
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_REMEDY = "delete the file, and make its features again with `python -m train.features`"
# Of one file: what a kill loses, and what waits in memory to be written.
FILE_BYTES = 128 * 2**20


class FeaturesError(ValueError):
    """Cached features that cannot be made or used; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Equal origins give an image equal features.

    Attributes:
        weights: sha256 of the vision tower's parameters, in the dtype that they are kept in.
        vision: its sizes.
        image: how images become its pixels.
        dtype: Dtype of the tower's computation and of the stored features.
        matmul_precision: How it multiplies float32, see `florence_jax.model.Model`.
    """

    weights: str
    vision: DaViTConfig
    image: ImageConfig
    dtype: Dtype
    matmul_precision: MatmulPrecision = "highest"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(rows, columns, channels) of an image's features, the last feature map."""
        return (*self.vision.grid(*self.image.size), self.vision.embed_dims[-1])

    @property
    def nbytes(self) -> int:
        """The size of an image's features in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @functools.cached_property
    def digest(self) -> bytes:
        return hashlib.sha256(json.dumps(to_tree(self), sort_keys=True).encode()).digest()


class FeatureStore:
    """The finished features of a directory. Picklable, and safe to share between threads."""

    def __init__(self, directory: str | Path, origin: Origin):
        """
        Raises:
            FeaturesError: the directory holds none, those of another origin, or a damaged file.
        """
        self.directory, self.origin = Path(directory), origin
        self._check_origin()
        self._places: dict[bytes, tuple[str, int]] = {}
        for path in sorted(self.directory.glob("[!.]*.safetensors")):
            for row, key in enumerate(self._read(path)["keys"]):
                self._places[key.tobytes()] = (path.name, row)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def look_up(self, image: Path | bytes | Image.Image) -> tuple[tuple[int, int], np.ndarray]:
        """((width, height) in pixels of the image as shown, its features).

        Raises:
            ImageError: the image cannot be read.
            FeaturesError: its features are missing or damaged.
        """
        key = key_of(image)
        if key not in self._places:
            load_image(image)
            raise FeaturesError(
                f"{self.directory} has no features of this image: make them with `python -m "
                "train.features` and the run's own settings"
            )
        name, row = self._places[key]
        tensors = self._read(self.directory / name)
        size, features = tensors["sizes"][row], np.array(tensors["features"][row])
        if checksum(self.origin, key, size, features) != tensors["checksums"][row].tobytes():
            raise FeaturesError(f"{self.directory / name} is damaged at row {row}: {_REMEDY}")
        return (int(size[0]), int(size[1])), features

    def blank(self) -> np.ndarray:
        """Zeros in place of the features of an image that has none."""
        return np.zeros(self.origin.shape, DTYPES[self.origin.dtype])

    def _check_origin(self) -> None:
        path = self.directory / ORIGIN
        try:
            content = read_json(path, max_bytes=MAX_SETTINGS_BYTES)
        except FileNotFoundError:
            raise FeaturesError(
                f"{self.directory} holds no features: make them with `python -m train.features` "
                "and the run's own settings"
            ) from None
        except (OSError, ValueError) as error:
            raise FeaturesError(f"{path} cannot be read: {error}") from None
        wanted = described(self.origin)
        changed = differences(content, wanted) if isinstance(content, dict) else ["format"]
        if changed:
            raise FeaturesError(
                f"{self.directory} holds features of something else: {'; '.join(changed)}. Undo "
                "that, or name another directory as data.cached_features and fill it with `python "
                "-m train.features`"
            )

    def _read(self, path: Path) -> dict[str, np.ndarray]:
        """Views of a file, opened anew: thousands of them would be too many to keep open."""
        try:
            tensors = {tensor.name: tensor.view() for tensor in open_safetensors(path, str(path))}
        except (CheckpointError, OSError) as error:
            raise FeaturesError(f"{error}: {_REMEDY}") from None
        rows = len(tensors["keys"]) if "keys" in tensors else 0
        found = {name: (leaf.shape, leaf.dtype) for name, leaf in tensors.items()}
        if found != {
            "keys": ((rows, 32), np.dtype(np.uint8)),
            "sizes": ((rows, 2), np.dtype(np.int32)),
            "checksums": ((rows, 32), np.dtype(np.uint8)),
            "features": ((rows, *self.origin.shape), DTYPES[self.origin.dtype]),
        }:
            raise FeaturesError(f"{path} is no file of features, or damaged: {_REMEDY}")
        return tensors


def described(origin: Origin) -> dict:
    """The content of features.json."""
    return {"format": FORMAT, **to_tree(origin)}


def key_of(image: Path | bytes | Image.Image) -> bytes:
    """sha256 of the file's bytes; of an image in memory, of its size and RGB pixels as shown.

    Raises:
        ImageError, OSError: there is no such file, or it cannot be read.
    """
    if isinstance(image, Image.Image):
        shown = load_image(image)
        return _sha256([f"{shown.width} {shown.height} ".encode(), shown.tobytes()])
    if isinstance(image, Path):
        if not image.is_file():
            load_image(image)  # which says what it is instead
        image = image.read_bytes()
    return _sha256([image])


def checksum(origin: Origin, key: bytes, size: np.ndarray, features: np.ndarray) -> bytes:
    """The checksum of one record.

    Args:
        size: int32[2], width and height.
        features: contiguous.
    """
    plain = features.view(np.uint8).reshape(-1)
    return _sha256([origin.digest, key, size.astype("<i4").tobytes(), plain.data])


def _sha256(parts: Iterable[bytes | memoryview]) -> bytes:
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part)
    return hashed.digest()


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
            features: The features, in the origin's shape and dtype.

        Raises:
            OSError: the disk is full, or the system refuses for another reason.
        """
        self._waiting[key] = np.array(size, np.int32), np.ascontiguousarray(features)
        if len(self._waiting) >= self._rows_of_a_file:
            self.flush()

    def flush(self) -> None:
        """Write all waiting features to disk before this returns.

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
