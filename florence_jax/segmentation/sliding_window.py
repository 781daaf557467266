"""Segment an image of any size by overlapping windows of one size."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from florence_jax.model.handle import Params
from florence_jax.segmentation.segmenter import Segmenter


def sliding_logits(
    segmenter: Segmenter,
    params: Params,
    image: np.ndarray,
    *,
    window: tuple[int, int] = (512, 512),
    stride: tuple[int, int] = (341, 341),
    batch_size: int = 4,
) -> np.ndarray:
    """Mean of the logits of all windows that see a pixel.

    The last window of a row or column is moved back into the image. An image smaller than the
    window is padded with zeros at its right and bottom. One program serves all sizes.

    Args:
        segmenter, params: the network.
        image: float[H, W, 3], normalised.
        window: (rows, columns) that the network sees at a time.
        stride: (rows, columns) from one window to the next.
        batch_size: windows in one call.

    Returns:
        float32[H, W, K].

    Raises:
        ValueError: a stride beyond the window, which would leave pixels out.
    """
    for name, step, side in zip(("rows", "columns"), stride, window, strict=True):
        if not 1 <= step <= side:
            raise ValueError(f"stride is {step} {name}, expected 1 to {side}, the window's")
    height, width = image.shape[:2]
    padding = [(0, max(side - have, 0)) for side, have in zip(window, (height, width), strict=True)]
    padded = np.pad(image, (*padding, (0, 0)))
    rows, columns = (
        _starts(have, side, step)
        for have, side, step in zip(padded.shape[:2], window, stride, strict=True)
    )
    corners = [(top, left) for top in rows for left in columns]
    total = np.zeros((*padded.shape[:2], segmenter.config.num_classes), np.float32)
    count = np.zeros((*padded.shape[:2], 1), np.float32)
    for first in range(0, len(corners), batch_size):
        chosen = corners[first : first + batch_size]
        # A batch that is not full repeats its last window: no program for another size.
        filled = chosen + chosen[-1:] * (batch_size - len(chosen))
        cut = [padded[top : top + window[0], left : left + window[1]] for top, left in filled]
        logits = np.asarray(segmenter.logits(params, jnp.asarray(np.stack(cut))))
        for (top, left), one in zip(chosen, logits[: len(chosen)], strict=True):
            place = slice(top, top + window[0]), slice(left, left + window[1])
            total[place] += one
            count[place] += 1
    return (total / count)[:height, :width]


def _starts(have: int, side: int, step: int) -> list[int]:
    steps = -(-(have - side) // step)
    return [min(number * step, have - side) for number in range(steps + 1)]
