"""Images through the image encoder: read, normalized on the device, and encoded once each."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from florence_jax.inference.batching import padded_rows, split_into_buckets
from florence_jax.inference.requests import DecodedImage, Request
from florence_jax.processing import ImageConfig, load_image
from florence_jax.processing.image.pixels import channel_tables, resize_image
from florence_jax.runtime.error_text import is_of_one_input

# Pixels uint8[N, H, W, 3] -> features of each image, N arrays float[I, D].
EncodeFn = Callable[[np.ndarray], Sequence[jax.Array]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EncodedImage:
    """An image that `pipe.encode` has seen: pass it wherever that pipeline takes an image.

    Attributes:
        features: float[I, D], on the device.
        size: (width, height) of the upright image, the frame of regions and answers.
        pixel_size: (height, width) in pixels at which it was encoded.
        params: the weights that encoded it; the features mean nothing to others.
    """

    features: jax.Array
    size: tuple[int, int]
    pixel_size: tuple[int, int]
    params: Any = dataclasses.field(repr=False)

    def __repr__(self) -> str:
        height, width = self.pixel_size
        tokens, channels = self.features.shape
        return (
            f"EncodedImage({self.size[0]}x{self.size[1]} image, encoded at {width}x{height}: "
            f"{tokens} features of {channels} {self.features.dtype})"
        )


@dataclasses.dataclass(eq=False)
class CachedImage:
    """An image that was read, and is encoded once `encoded` is there.

    Attributes:
        source: the image as the request has it, kept so that no other object gets its id.
        size: (width, height) of the upright image.
        pixels: uint8[H, W, 3], resized; empty where `source` was encoded before.
    """

    source: Any
    size: tuple[int, int]
    pixels: np.ndarray
    encoded: EncodedImage | None = None


class ImageEncoder:
    """Reads images, and encodes those that are not encoded yet."""

    def __init__(
        self, encode: EncodeFn, image_config: ImageConfig, buckets: Sequence[int], params: Any
    ) -> None:
        self._encode = encode
        self._config = image_config
        self._buckets = buckets
        self._params = params
        self._encoding = threading.Lock()

    def read(self, image: Any) -> CachedImage:
        """One image, decoded and resized.

        One that was read already is returned as it is.

        Raises:
            ImageError: it cannot be read.
            ValueError: it was encoded by another pipeline.
        """
        if isinstance(image, CachedImage):
            return image
        if isinstance(image, EncodedImage):
            if image.params is not self._params:
                raise ValueError(
                    "the encoded image comes from a pipeline with other weights: encode it with "
                    "this pipeline's encode()"
                )
            return CachedImage(image, image.size, np.empty(0, np.uint8), encoded=image)
        if isinstance(image, DecodedImage):
            return CachedImage(image, image.size, image.pixels)
        loaded = load_image(image)
        height, width = self._config.size
        resized = resize_image(loaded, (width, height), self._config.resample)
        return CachedImage(image, loaded.size, np.asarray(resized))

    def read_or_error(self, image: Any) -> CachedImage | Exception:
        """As `read`; the error of an image that cannot be read."""
        try:
            return self.read(image)
        except Exception as error:
            if not is_of_one_input(error):
                raise
            return error

    def encode(self, images: Sequence[CachedImage]) -> list[EncodedImage]:
        """The images encoded, in order; returns before the device has finished."""
        with self._encoding:  # queues that share an image encode it once
            self._encode_new(images)
        return [image.encoded for image in images if image.encoded is not None]

    def _encode_new(self, images: Sequence[CachedImage]) -> None:
        new = list(dict.fromkeys(image for image in images if image.encoded is None))
        for piece in split_into_buckets(len(new), self._buckets):
            pixels = np.stack([image.pixels for image in new[piece]])
            rows = padded_rows(len(pixels), self._buckets)
            features = self._encode(pixels if len(rows) == len(pixels) else pixels[rows])
            for image, own in zip(new[piece], features, strict=False):
                image.encoded = EncodedImage(
                    features=own,
                    size=image.size,
                    pixel_size=self._config.size,
                    params=self._params,
                )


def stream_chunks(
    requests: Iterable[Request], size: int, *, by_image: bool
) -> Iterator[list[Request]]:
    """Stretches of a stream whose images are read together: `size` requests, or images, each."""
    if not by_image:
        remaining = iter(requests)
        while chunk := list(itertools.islice(remaining, size)):
            yield chunk
        return
    chunk, images = [], set()
    for request in requests:
        if len(images) == size and request.image_key not in images:
            yield chunk
            chunk, images = [], set()
        chunk.append(request)
        images.add(request.image_key)
    if chunk:
        yield chunk


class ChunkReader:
    """Reads the images of one chunk of a stream after the other.

    An image that several requests of a chunk name is read once. One that the chunk before had too
    is read again, because its file or array may have changed, and encoded again only if its pixels
    have.
    """

    def __init__(self, encoder: ImageEncoder) -> None:
        self._encoder = encoder
        self._before: dict[Hashable, CachedImage] = {}

    def read(self, requests: Sequence[Request]) -> list[CachedImage | Exception]:
        """Each request's image, or why it cannot be read; the same object for the same image."""
        found: dict[Hashable, CachedImage | Exception] = {}
        for request in requests:
            key = request.image_key
            if key not in found:
                found[key] = self._unchanged(key, self._encoder.read_or_error(request.image))
        self._before = {key: one for key, one in found.items() if isinstance(one, CachedImage)}
        return [found[request.image_key] for request in requests]

    def _unchanged(self, key: Hashable, image: CachedImage | Exception) -> CachedImage | Exception:
        before = self._before.get(key)
        if before is None or isinstance(image, Exception) or before.size != image.size:
            return image
        return before if np.array_equal(before.pixels, image.pixels) else image


class Normalizer:
    """uint8[N, H, W, 3] on the host -> float32[N, H, W, 3] on the device, as `preprocess_image`.

    A quarter of the bytes of normalized pixels cross to the device.
    """

    def __init__(self, config: ImageConfig) -> None:
        self._tables = channel_tables(config)

    def __call__(self, pixels: np.ndarray | jax.Array) -> jax.Array:
        return _look_up(pixels, self._tables)


@jax.jit
def _look_up(pixels: jax.Array, tables: jax.Array) -> jax.Array:
    """Looked up, not computed: devices divide and multiply in their own ways, the 256 values of
    each channel are the reference's."""
    index = pixels.astype(jnp.int32)
    return jnp.stack(
        [jnp.take(tables[channel], index[..., channel], mode="clip") for channel in range(3)], -1
    )


@jax.jit
def stack_features(features: Sequence[jax.Array]) -> jax.Array:
    """B arrays float[I, D] -> float[B, I, D]."""
    return jnp.stack(features)
