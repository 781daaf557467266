"""Predictions as rows: one row for each image, with all of its answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from florence_jax.inference.predict import Prediction
from florence_jax.results.json_rows import result_to_json
from florence_jax.results.rows import Row


def image_rows(predictions: Iterable[Prediction], queries: int) -> Iterator[Row]:
    """One row for each image, of predictions that come image by image, `queries` for each."""
    answers: list[Prediction] = []
    for prediction in predictions:
        answers.append(prediction)
        if len(answers) == queries:
            yield result_to_json(_row(answers))
            answers = []


def _row(predictions: list[Prediction]) -> Row:
    first = predictions[0]
    row: Row = {"id": first.id}
    if first.page is not None:
        row |= {"image": str(first.path), "page": first.page}
    if first.notes:
        row["image_note"] = "; ".join(first.notes)
    if first.image is None:
        return row | {"error": first.error}
    row["width"], row["height"] = first.image.size
    row["answers"] = list(map(_answer, predictions))
    if all(one.result is None for one in predictions):
        row["error"] = first.error
    return row


def _answer(prediction: Prediction) -> dict[str, Any]:
    answer = prediction.query.to_dict()
    if prediction.result is None:
        return answer | {"error": prediction.error}
    drawn = prediction.drawing_error
    return answer | {"result": prediction.result} | ({"drawing_error": drawn} if drawn else {})
