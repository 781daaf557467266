"""COCO's average precision and recall, counted by pycocotools itself."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

# In the order of `COCOeval.stats`.
COCO_FIGURES = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR_1",
    "AR_10",
    "AR_100",
    "AR_small",
    "AR_medium",
    "AR_large",
)


def coco_average_precision(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    kind: Literal["bbox", "segm"] = "bbox",
    image_ids: Iterable[int] | None = None,
    use_scores: bool = True,
) -> dict[str, float]:
    """The twelve figures of COCO detection, by the names of `COCO_FIGURES`.

    Args:
        truth: the content of an instances file: `images`, `annotations`, `categories`.
        results: detections in COCO's results format: `image_id`, `category_id`, `bbox` (x, y,
            width, height in pixels) or `segmentation` (RLE or polygons), `score`.
        kind: whether boxes or masks are compared.
        image_ids: the images that count; by default all of the truth.
        use_scores: False ranks each image's detections as they stand, as is done for a model
            without confidences: every score is 1.

    Returns:
        0..1 each, or -1 where the truth has nothing of that size.

    Raises:
        ModuleNotFoundError: pycocotools is not installed.
        ValueError: results for images that the truth does not have.
    """
    import_pycocotools()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    known = {image["id"] for image in truth["images"]}
    strangers = sorted({str(row["image_id"]) for row in results if row["image_id"] not in known})
    if strangers:
        raise ValueError(
            f"results for {len(strangers)} images that the truth does not have, such as "
            f"{strangers[0]}: take both from one split"
        )
    with contextlib.redirect_stdout(io.StringIO()):
        # pycocotools writes into what it is given.
        annotated = _indexed(COCO(), copy.deepcopy(dict(truth)))
        detected = annotated.loadRes(_rows(results, use_scores)) if results else _empty(annotated)
        evaluation = COCOeval(annotated, detected, kind)
        if image_ids is not None:
            evaluation.params.imgIds = sorted(set(image_ids))
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(COCO_FIGURES, map(float, evaluation.stats), strict=True))


def import_pycocotools() -> None:
    """Raises ModuleNotFoundError, with what to install, where pycocotools is missing or broken."""
    try:
        import pycocotools.cocoeval  # noqa: F401
    # Compiled for another NumPy, it raises ValueError.
    except (ImportError, ValueError, AttributeError) as error:
        missing = isinstance(error, ModuleNotFoundError)
        raise ModuleNotFoundError(
            'boxes and masks are counted by pycocotools: pip install "florence-jax[evaluate]"'
            + ("" if missing else f"; the one that is here cannot be imported ({error})"),
            name="pycocotools" if missing else None,
        ) from error


def _rows(results: Sequence[Mapping[str, Any]], use_scores: bool) -> list[dict[str, Any]]:
    return [copy.deepcopy(dict(row)) | ({} if use_scores else {"score": 1.0}) for row in results]


def _indexed(coco: Any, dataset: dict[str, Any]) -> Any:
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _empty(annotated: Any) -> Any:
    """No detection at all, which `loadRes` cannot read."""
    dataset = annotated.dataset
    parts = {"images": dataset["images"], "categories": dataset["categories"]}
    return _indexed(type(annotated)(), parts | {"annotations": []})
