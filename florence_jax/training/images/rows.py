"""Turn labelled images into rows of pixels and labels, and these into batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from florence_jax.processing import load_image
from florence_jax.processing.image.crop import CropConfig, crop_picture
from florence_jax.processing.image.pixels import resize_image
from florence_jax.segmentation.masks import IGNORED, read_mask
from florence_jax.segmentation.segment_image import cover
from florence_jax.training.data.preprocess import ExampleRef
from florence_jax.training.images.augment import (
    random_crop,
    random_crop_with_mask,
    resize_mask,
)
from florence_jax.training.images.config import ImageAugmentConfig
from florence_jax.training.images.data import CLASS, MASK
from florence_jax.training.losses import IGNORE
from florence_jax.training.state import Batch


@dataclass(frozen=True)
class ImageRow:
    """One labelled image as arrays.

    Attributes:
        id: the example's.
        image: uint8[H, W, 3].
        labels: int32[L]: its class, or those of its pixels; `IGNORE` does not count. None for a row
            without weight.
        problem: why the row has no weight, or None.
    """

    id: str
    image: np.ndarray
    labels: np.ndarray | None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class ImageRows:
    """Opens, augments and resizes; an unusable image becomes a row without weight.

    Attributes:
        image: size and crop of what the network sees.
        num_classes: classes of a mask's pixels.
        augment: changes of training images; None for evaluation.
        labels: labels of a row.
        reduce_zero_label: as for `read_mask`.
    """

    image: CropConfig
    num_classes: int
    augment: ImageAugmentConfig | None = None
    labels: int = 1
    reduce_zero_label: bool = False

    def __call__(self, ref: ExampleRef, rng: np.random.Generator) -> ImageRow:
        """The row of an example; equal arguments give equal rows."""
        where = f"{ref.name}:{ref.index}"
        try:
            example = ref.source[ref.index]
            where = example.id
            assert isinstance(example.labels, Mapping)
            picture = load_image(example.image)
            if MASK in example.labels:
                pixels, classes = self._with_mask(picture, example.labels[MASK], rng)
                counted = np.where(classes == IGNORED, IGNORE, classes).astype(np.int32)
                return ImageRow(where, pixels, counted.ravel())
            label = np.array([example.labels[CLASS]], np.int32)
            return ImageRow(where, self._cropped(picture, rng), label)
        # As in `Preprocessor`: one bad file must not end a run of days.
        except Exception as error:
            blank = np.zeros((*self.image.size, 3), np.uint8)
            return ImageRow(where, blank, None, f"{type(error).__name__}: {error}")

    def collate(self, rows: Sequence[ImageRow], micro: int = 1) -> Batch:
        """Rows as one batch of `micro` micro-batches."""
        height = len(rows) // micro
        images = np.stack([row.image for row in rows])
        labels = np.full((len(rows), self.labels), IGNORE, np.int32)
        for number, row in enumerate(rows):
            if row.labels is not None:
                labels[number] = row.labels
        return Batch(
            images=images.reshape(micro, height, *images.shape[1:]),
            # No image network is asked a question.
            input_ids=np.zeros((micro, height, 1), np.int32),
            labels=labels.reshape(micro, height, self.labels),
            ids=tuple(row.id for row in rows),
            problems=tuple((row.id, row.problem) for row in rows if row.problem is not None),
        )

    def _cropped(self, picture: Image.Image, rng: np.random.Generator) -> np.ndarray:
        if self.augment is None:
            return np.asarray(crop_picture(picture, self.image))
        return random_crop(picture, self.image.size, self.augment, self.image.resample, rng)

    def _with_mask(
        self, picture: Image.Image, file: str, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        mask = read_mask(
            file,
            num_classes=self.num_classes,
            size=(picture.height, picture.width),
            reduce_zero_label=self.reduce_zero_label,
        )
        size, resample = self.image.size, self.image.resample
        if self.augment is not None:
            return random_crop_with_mask(picture, mask, size, self.augment, resample, rng)
        scale = cover(picture.size, size)
        width, height = (round(scale * side) for side in picture.size)
        top, left = (height - size[0]) // 2, (width - size[1]) // 2
        place = slice(top, top + size[0]), slice(left, left + size[1])
        pixels = np.asarray(resize_image(picture, (width, height), resample))
        return pixels[place], resize_mask(mask, (height, width))[place]
