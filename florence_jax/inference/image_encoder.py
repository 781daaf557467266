"""Images through the image encoder: once each, however often they are asked about."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from florence_jax.inference.batching import padded_rows, split_into_buckets
from florence_jax.inference.requests import image_key
from florence_jax.processing import ImageConfig, load_image, preprocess_image

# Pixels float32[N, H, W, 3] -> features of each image, N arrays float[I, D].
EncodeFn = Callable[[np.ndarray], tuple[jax.Array, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EncodedImage:
    """An image that `pipe.encode` has seen: pass it wherever that pipeline takes an image.

    Attributes:
        features: float[I, D], on the device.
        size: (width, height) of the upright picture, the frame of regions and answers.
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
            f"EncodedImage({self.size[0]}x{self.size[1]} picture, encoded at {width}x{height}: "
            f"{tokens} features of {channels} {self.features.dtype})"
        )


@jax.jit
def stack_features(features: Sequence[jax.Array]) -> jax.Array:
    """B arrays float[I, D] -> float[B, I, D]."""
    return jnp.stack(features)


@dataclasses.dataclass(eq=False)
class _CachedImage:
    """A picture of this batch: read, and encoded once `encoded` is there."""

    source: Any  # kept, so that no other object gets its id meanwhile
    size: tuple[int, int]
    pixels: np.ndarray  # float32[H, W, 3]; empty where `source` was encoded before
    encoded: EncodedImage | None = None


class ImageEncoder:
    """Reads and encodes the images of one batch after the other.

    An image that a batch asks about several times is read and encoded once. One that the batch
    before had too is read again, for its file or array may have changed since, and encoded again
    only if its pixels have.
    """

    def __init__(
        self, encode: EncodeFn, image_config: ImageConfig, buckets: Sequence[int], params: Any
    ) -> None:
        self._encode = encode
        self._config = image_config
        self._buckets = buckets
        self._params = params
        self._before: dict[Hashable, _CachedImage] = {}

    def read(self, images: Sequence[Any], *, keep_errors: bool = False) -> list[Any]:
        """A picture for each of `images`; the same one where they are the same.

        Args:
            keep_errors: give the error of an image that cannot be read in place of its picture.

        Raises:
            ImageError: an image cannot be read.
            ValueError: it was encoded by another pipeline.
        """
        found: dict[Hashable, _CachedImage | ValueError] = {}
        for image in images:
            key = image_key(image)
            if key in found:
                continue
            try:
                found[key] = self._known(image) or self._read(image, self._before.get(key))
            except ValueError as error:  # an ImageError is one
                if not keep_errors:
                    raise
                found[key] = error
        self._before = {key: one for key, one in found.items() if isinstance(one, _CachedImage)}
        return [found[image_key(image)] for image in images]

    def encode(self, pictures: Sequence[_CachedImage]) -> list[EncodedImage]:
        """What `read` returned, encoded; returns before the device has finished."""
        new = list(dict.fromkeys(picture for picture in pictures if picture.encoded is None))
        for piece in split_into_buckets(len(new), self._buckets):
            pixels = np.stack([picture.pixels for picture in new[piece]])
            rows = padded_rows(len(pixels), self._buckets)
            features = self._encode(pixels if len(rows) == len(pixels) else pixels[rows])
            for picture, own in zip(new[piece], features, strict=False):
                picture.encoded = EncodedImage(
                    features=own,
                    size=picture.size,
                    pixel_size=self._config.size,
                    params=self._params,
                )
        return [picture.encoded for picture in pictures if picture.encoded is not None]

    def _known(self, image: Any) -> _CachedImage | None:
        if not isinstance(image, EncodedImage):
            return None
        if image.params is not self._params:
            raise ValueError(
                "the encoded image comes from a pipeline with other weights: encode it with this "
                "pipeline's encode()"
            )
        return _CachedImage(image, image.size, np.empty(0, np.float32), encoded=image)

    def _read(self, image: Any, before: _CachedImage | None) -> _CachedImage:
        loaded = load_image(image)
        pixels = preprocess_image(loaded, **dataclasses.asdict(self._config))
        if before and before.size == loaded.size and np.array_equal(before.pixels, pixels):
            return before
        return _CachedImage(image, loaded.size, pixels)
