"""`ImageCache`: images by their content, each read and encoded once while there is room."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections import OrderedDict

import numpy as np

from florence_jax.inference.engine import Engine
from florence_jax.inference.image_encoder import CachedImage
from florence_jax.processing.image.load import load_image_and_notes


class ReadImage:
    """An image of a request.

    Attributes:
        key: of its content.
        cached: what the engine takes.
        notes: the assumptions that it was read on.
    """

    def __init__(self, key: bytes, cached: CachedImage, notes: tuple[str, ...]) -> None:
        self.key, self.cached, self.notes = key, cached, notes

    @property
    def nbytes(self) -> int:
        """Bytes of pixels on the host and of features on the device."""
        encoded = self.cached.encoded
        return self.cached.pixels.nbytes + (0 if encoded is None else encoded.features.nbytes)


class ImageCache:
    """The images last asked about, up to a number of bytes, from any number of threads.

    Requests about an image that others are waiting for share it, however small the cache is.

    Attributes:
        hits, misses: images that were there, and that were not.
        nbytes: of what is kept.
    """

    def __init__(self, engine: Engine, max_bytes: int, max_pixels: int) -> None:
        self._engine, self._max_bytes, self._max_pixels = engine, max_bytes, max_pixels
        self._lock = threading.Lock()
        self._in_use = weakref.WeakValueDictionary[bytes, ReadImage]()
        self._kept: OrderedDict[bytes, tuple[ReadImage, int]] = OrderedDict()
        self.hits = self.misses = self.nbytes = 0

    def read(self, data: bytes) -> ReadImage:
        """The image in `data`, an encoded file.

        Raises:
            ImageError: it cannot be read, or has too many pixels.
        """
        key = hashlib.sha256(data).digest()
        with self._lock:
            found = self._in_use.get(key)
            if found is not None:
                self.hits += 1
                if key in self._kept:
                    self._kept.move_to_end(key)
                return found
            self.misses += 1
        image, notes = load_image_and_notes(data, max_pixels=self._max_pixels)
        read = ReadImage(key, self._engine.read_image(image), notes)
        # Only its pixels are needed from here on.
        read.cached.source = None
        with self._lock:
            return self._in_use.setdefault(key, read)

    def keep(self, image: ReadImage) -> None:
        """Keep an image that was encoded, in place of the ones asked about longest ago."""
        with self._lock:
            if image.cached.encoded is not None:
                image.cached.pixels = np.empty(0, np.uint8)
            _, before = self._kept.pop(image.key, (image, 0))
            self._kept[image.key] = image, image.nbytes
            self.nbytes += image.nbytes - before
            while self.nbytes > self._max_bytes:
                _, (_, freed) = self._kept.popitem(last=False)
                self.nbytes -= freed
