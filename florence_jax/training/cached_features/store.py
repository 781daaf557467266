"""A directory of image features, found by the content of the image and verified when read.

    DIR/features.json        what the features are a function of (`Origin`)
    DIR/<hash>.safetensors   some images: keys uint8[N, 32], sizes int32[N, 2], checksums
                             uint8[N, 32] and features [N, rows, columns, channels]

A checksum covers the origin, the image's key and size, and the features: no record is taken for
another's, whatever happens to the files.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import ml_dtypes
import numpy as np
from PIL import Image

from florence_jax.checkpoint import CheckpointError
from florence_jax.checkpoint.pytorch.weights import open_safetensors
from florence_jax.processing import load_image
from florence_jax.runtime.text_file import MAX_SETTINGS_BYTES, read_json
from florence_jax.training.cached_features.fingerprint import FeaturesError, Origin
from florence_jax.training.config_loader import differences, to_tree

FORMAT = "florence-jax-features-1"
ORIGIN = "features.json"
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_REMEDY = "delete the file, and make its features again with `python -m train.features`"


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
        """In place of the features of an image that has none."""
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
    """What features.json says."""
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
    """Of one record.

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
