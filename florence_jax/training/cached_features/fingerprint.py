"""What an image's features are a function of, beside the image."""

import functools
import hashlib
import json
import math
from dataclasses import dataclass

import numpy as np

from florence_jax.config import DaViTConfig
from florence_jax.matmul_precision import MatmulPrecision
from florence_jax.processing import ImageConfig
from florence_jax.training.config import Dtype
from florence_jax.training.config_loader import to_tree


class FeaturesError(ValueError):
    """Cached features that cannot be made or used; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Equal origins give an image equal features.

    Attributes:
        weights: sha256 of the vision tower's parameters, in the dtype that they are kept in.
        vision: its sizes.
        image: how images become its pixels.
        dtype: what it computes in, and what the features are stored in.
        matmul_precision: how it multiplies float32, see `florence_jax.model.Model`.
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
