"""Results as `supervision.Detections`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from florence_jax.results.instances import Instance, exportable_instances

if TYPE_CHECKING:
    import supervision

# PIL's rasteriser works in C ints; every real image is far smaller.
_COORDINATE_LIMIT = 1 << 20


def to_supervision(
    result: Mapping[str, Any], image_size: tuple[int, int]
) -> supervision.Detections:
    """`supervision.Detections` with everything the result has.

    `supervision.Detections.from_vlm(sv.VLM.FLORENCE_2, ...)` reads our results as they are; this
    one also keeps scores (`confidence`), class ids (positions in the sorted distinct labels), the
    labels of polygons, and open-vocabulary polygons. `data["class_name"]` holds the labels and
    `data["xyxyxyxy"]` the quads when every instance is one. Where an instance has polygons all get
    masks, a box its filled rectangle, since `Detections` holds a mask for all or for none. Text
    without locations gives empty detections.

    Args:
        result: `{task: value}`.
        image_size: (width, height) in pixels, the size of the masks.

    Raises:
        ImportError: supervision is not installed.
        ValueError: a coordinate or score that is not finite, or a malformed value.
    """
    try:
        import supervision as sv
    except ImportError as error:
        raise ImportError("to_supervision needs supervision: pip install supervision") from error

    found = list(exportable_instances(result, image_size, where="result"))
    if not found:
        empty = sv.Detections.empty()
        empty.data = {"class_name": np.empty(0, dtype=str)}
        return empty
    names = np.array([instance.label for instance in found])
    data: dict[str, Any] = {"class_name": names}
    if all(instance.kind == "quad" for instance in found):
        data["xyxyxyxy"] = np.stack([i.parts[0] for i in found]).astype(np.float32)
    masks = None
    if any(instance.kind == "polygons" for instance in found):
        masks = np.stack([_mask(instance, image_size) for instance in found])
    scores = [instance.score for instance in found]
    return sv.Detections(
        xyxy=np.array([instance.bounds() for instance in found], dtype=np.float32),
        mask=masks,
        confidence=None if None in scores else np.array(scores, dtype=np.float32),
        class_id=np.unique(names, return_inverse=True)[1],
        data=data,
    )


def _mask(instance: Instance, image_size: tuple[int, int]) -> np.ndarray:
    """`bool[height, width]`: the union of the polygons, or the box."""
    mask = Image.new("1", (int(image_size[0]), int(image_size[1])))
    draw = ImageDraw.Draw(mask)
    if instance.kind == "box":
        draw.rectangle(np.clip(instance.bounds(), -1, _COORDINATE_LIMIT).tolist(), fill=1)
    for polygon in instance.polygons():
        clipped = np.clip(polygon, -_COORDINATE_LIMIT, _COORDINATE_LIMIT)
        draw.polygon([tuple(point) for point in clipped.tolist()], fill=1)
    return np.asarray(mask, dtype=bool)
