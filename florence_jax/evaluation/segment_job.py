"""The job of `florence-jax evaluate` for masks: an image's confusion matrix as its row."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from florence_jax.batch.job import DecodedItem, Row, program_fingerprint
from florence_jax.inference.device_stats import DeviceStats
from florence_jax.model.handle import Params
from florence_jax.processing import ImageError
from florence_jax.runtime.atomic_file import atomic_open
from florence_jax.segmentation.masks import draw_mask, read_mask
from florence_jax.segmentation.metrics import confusion
from florence_jax.segmentation.segment_image import segment_image
from florence_jax.segmentation.segmenter import Segmenter


class SegmentJob:
    """Makes rows `{"width", "height", "confusion": [[true class, answer, pixels], ...]}`.

    An item's `extra["mask"]` is the path of its mask. A mask that does not fit is the row's error.
    """

    image_config = None

    def __init__(
        self,
        segmenter: Segmenter,
        params: Params,
        masks: Path,
        *,
        reduce_zero_label: bool = False,
        whole: bool = False,
        batch_size: int = 8,
        drawn: Path | None = None,
    ) -> None:
        """
        Args:
            segmenter, params: of `load_segmenter`.
            masks: the folder of masks.
            reduce_zero_label: as for `read_mask`.
            whole: as for `segment_image`.
            batch_size: windows in one compiled call.
            drawn: folder for images with the truth and the answer over them; None for none.
        """
        self._segmenter, self._params, self._masks = segmenter, params, masks
        self._reduce_zero_label, self._whole = reduce_zero_label, whole
        self._batch_size, self._drawn = batch_size, drawn
        self.activity = DeviceStats(counts_tokens=False)

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        segmenter = self._segmenter
        return {
            "kind": "segment",
            "whole": self._whole,
            "reduce_zero_label": self._reduce_zero_label,
            "batch_rows": self._batch_size,
            "segmenter": dataclasses.asdict(segmenter.config),
            "dtype": segmenter.dtype,
            **program_fingerprint(
                self._params,
                image=segmenter.config.backbone.image,
                mesh=segmenter.mesh,
                matmul_precision=segmenter.matmul_precision,
            ),
        }

    def __call__(self, loaded: Iterable[DecodedItem]) -> Sequence[Row]:
        return [self._row(one) for one in loaded]

    def _row(self, one: DecodedItem) -> Row:
        name, classes = str(one.item.extra["mask"]), self._segmenter.config.num_classes
        try:
            truth = read_mask(
                self._masks / name,
                num_classes=classes,
                size=(one.size[1], one.size[0]),
                reduce_zero_label=self._reduce_zero_label,
            )
        except ImageError as error:
            return {"error": str(error)}
        picture = Image.fromarray(one.pixels)
        self.activity.begin()
        answer = segment_image(
            self._segmenter,
            self._params,
            picture,
            whole=self._whole,
            batch_size=self._batch_size,
        )
        self.activity.end()
        self.activity.add_tokens(0)
        if self._drawn is not None:
            _draw(self._drawn / f"{one.item.id}.png", picture, truth, answer)
        matrix = confusion(answer, truth, classes)
        pairs = np.argwhere(matrix).tolist()
        counts = [[true, found, int(matrix[true, found])] for true, found in pairs]
        return {"width": one.size[0], "height": one.size[1], "confusion": counts}


def _draw(path: Path, picture: Image.Image, truth: np.ndarray, answer: np.ndarray) -> None:
    """The truth and, at its right, the answer."""
    page = Image.new("RGB", (2 * picture.width, picture.height))
    page.paste(draw_mask(picture, truth))
    page.paste(draw_mask(picture, answer), (picture.width, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path, "wb") as file:
        page.save(file, "PNG")
