"""The first batch of an image network's run, for `--dry-run`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from florence_jax.segmentation.masks import IGNORED, draw_mask
from florence_jax.training.images.config import ClassifyConfig
from florence_jax.training.images.run import ImageRun
from florence_jax.training.losses import IGNORE

_PICTURES = 8


def first_batch(run: ImageRun, directory: Path) -> Iterator[str]:
    """Lines on the data and the first batch; its pictures go to `directory`."""
    classes = run.network.classes
    yield f"steps: {run.setup.steps:,}; {len(classes)} classes: {', '.join(classes)}"
    valid = 0 if run.data.valid is None else len(run.data.valid)
    yield f"images: {len(run.data.train):,} of train, {valid:,} of valid"
    batch = run.batches().batch(0)
    yield f"first batch: images {batch.images.dtype}{list(batch.images.shape)}"
    yield from (f"  unusable: {row}: {reason}" for row, reason in batch.problems)
    images = batch.images.reshape(-1, *batch.images.shape[2:])
    labels = batch.labels.reshape(len(images), -1)
    is_class = isinstance(run.setup.config, ClassifyConfig)
    for number, (row, image, label) in enumerate(zip(batch.ids, images, labels, strict=True)):
        picture = Image.fromarray(image)
        if is_class:
            known = label[0] != IGNORE
            yield f"  {row}: {classes[label[0]] if known else 'no class'}"
        else:
            mask = np.where(label == IGNORE, IGNORED, label).reshape(image.shape[:2])
            seen = ", ".join(classes[one] for one in np.unique(mask) if one != IGNORED)
            yield f"  {row}: {seen or 'no pixel counts'}"
            picture = draw_mask(picture, mask)
        if number < _PICTURES:
            picture.save(directory / f"{number:04d}.png")
    yield f"pictures: {directory}"
