"""HTML page of the worst answers: truth and answer side by side, drawn on their images."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from florence_jax.batch.image_reader import ImageSource, open_image
from florence_jax.evaluation.report import Report, Worst
from florence_jax.evaluation.scoring import Row, answer_value
from florence_jax.results.draw import draw_result
from florence_jax.runtime.error_text import row_error_text

_SIDE = 480
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 1060px; color: #18181b }
section { border-top: 1px solid #d4d4d8; padding: 1rem 0 }
figure { display: inline-block; vertical-align: top; margin: 0 1rem 0 0; max-width: 500px }
figcaption { color: #71717a } img { max-width: 100% } pre { white-space: pre-wrap; margin: .2rem 0 }
"""


def worst_page(report: Report, cases: Sequence[Worst], images: Mapping[str, ImageSource]) -> str:
    """The page as one HTML file, images included.

    Args:
        report: what was evaluated.
        cases: the rows to show, worst first.
        images: the image of each row, by the row's id.
    """
    title = f"{report.benchmark} {report.split}: the {len(cases)} worst of {report.examples}"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><h1>{html.escape(title)}</h1>",
        f"<pre>{html.escape(report.describe())}</pre>",
        *(_case(case, images[case.row["id"]]) for case in cases),
    ]
    return "\n".join(parts) + "\n"


def _case(case: Worst, source: ImageSource) -> str:
    row = case.row
    head = f"{case.score:.3f} · {row.get('image', row['id'])} · {row['id']}"
    asked = f"<pre>{html.escape(str(row['input']))}</pre>" if "input" in row else ""
    try:
        image = open_image(source)
        truth, answer = _drawable_truth(row), answer_value(row)
        figures = _figure("truth", image, truth)
        figures += _figure("answer", image, _drawable(answer, row))
    except Exception as error:  # the page has the other cases
        text = html.escape(row_error_text(error))
        return f"<section><h3>{html.escape(head)}</h3>{asked}{text}</section>"
    return f"<section><h3>{html.escape(head)}</h3>{asked}{figures}</section>"


def _figure(name: str, image: Image.Image, value: Any) -> str:
    """Shapes drawn on the image, or text below it."""
    if isinstance(value, Mapping):
        image, text = draw_result(image, {name: value}), ""
        if not any(value.values()):
            text = "nothing"
    else:
        text = str(value)
    caption = html.escape(text)
    return (
        f'<figure><figcaption>{name}</figcaption><img src="{_embedded(image)}" alt="{name}">'
        f"<pre>{caption}</pre></figure>"
    )


def _drawable(answer: Any, row: Row) -> Any:
    if answer is None:
        errors = [entry["error"] for entry in row.get("answers", ()) if "error" in entry]
        return row.get("error") or "; ".join(errors) or "no answer"
    return answer


def _drawable_truth(row: Row) -> Any:
    """The truth in the form of an answer."""
    truth = row["truth"]
    if isinstance(truth, Mapping) and "bboxes" in truth:
        return truth
    if isinstance(truth, Mapping):
        return _object(truth)
    if truth and isinstance(truth[0], Mapping):
        pairs = [(phrase["phrase"], box) for phrase in truth for box in phrase["boxes"]]
        return {"bboxes": [box for _, box in pairs], "labels": [label for label, _ in pairs]}
    return "\n".join(dict.fromkeys(truth))


def _object(truth: Mapping[str, Any]) -> dict[str, Any]:
    segmentation = truth.get("segmentation")
    if isinstance(segmentation, list):
        return {"polygons": [segmentation], "labels": [""]}
    return {"bboxes": [truth["box"]], "labels": [""]}


def _embedded(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((_SIDE, 2 * _SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
