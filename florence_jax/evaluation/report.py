"""Report of an evaluation: scores beside the published ones, as text, JSON and rows."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from florence_jax.batch.image_reader import ImageSource, open_image
from florence_jax.evaluation.paper_results import PublishedScore
from florence_jax.evaluation.scoring import Outcome, Row, answer_value
from florence_jax.results.draw import draw_result
from florence_jax.runtime.atomic_file import atomic_write, remove_leftovers
from florence_jax.runtime.directory_lock import directory_lock
from florence_jax.runtime.error_text import row_error_text
from florence_jax.runtime.jsonl import json_text, write_jsonl

REPORT, EXAMPLES, WORST, SUBMISSION = (
    "report.json",
    "examples.jsonl",
    "worst.html",
    "submission.json",
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """The rows and scores of one task; a published data set has one part.

    Attributes:
        name: the data set's title, or the task of custom rows.
        rows: rows in the order of the data set.
        outcome: scores; None if the truth of the split is not public.
    """

    name: str
    rows: Sequence[Row]
    outcome: Outcome | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of an evaluation.

    Attributes:
        benchmark, split, model: what was evaluated.
        settings: prompt, decoding and files, as JSON.
        parts: rows and scores of each task.
        examples: rows that were scored.
        total: examples of the split.
        failed: rows without an answer; they count as wrong.
        figure: the published score of this model and column.
        variants: published scores of other weights under the model's name.
    """

    benchmark: str
    split: str
    model: str
    settings: Mapping[str, Any]
    parts: Sequence[Part]
    examples: int
    total: int
    failed: int
    figure: PublishedScore | None = None
    variants: Sequence[PublishedScore] = ()

    def describe(self) -> str:
        """The scores as text."""
        lines = [
            f"{self.benchmark} {self.split}: {self.examples} of {self.total} examples, {self.model}"
        ]
        if self.failed:
            lines.append(f"{self.failed} examples have no answer (see {EXAMPLES}): they are wrong")
        for part in self.parts:
            if len(self.parts) > 1:
                lines.append(f"{part.name}, {len(part.rows)} examples")
            if part.outcome is None:
                lines.append(f"  the truth of this split is not public: send in {SUBMISSION}")
            else:
                lines += self._figures(part.outcome)
        return "\n".join(lines)

    def _figures(self, outcome: Outcome) -> list[str]:
        width = max(map(len, [outcome.metric, *outcome.others]))
        main = f"  {outcome.metric:<{width}}  {outcome.value:8.2f}"
        if self.figure is not None:
            difference = outcome.value - self.figure.value
            main += f"   published {self.figure.value} ({self.figure.source}): {difference:+.2f}"
            if self.examples < self.total:
                main += ", of the whole split"
        elif len(self.parts) == 1:
            main += "   nothing is published of this model and split"
        variants = (f"    {one.model}: {one.value} ({one.source})" for one in self.variants)
        others = (f"  {name:<{width}}  {value:8.2f}" for name, value in outcome.others.items())
        return [main, *variants, *others]

    def as_json(self) -> dict[str, Any]:
        """The report as JSON, without the rows."""
        content: dict[str, Any] = {
            "benchmark": self.benchmark,
            "split": self.split,
            "model": self.model,
            "examples": self.examples,
            "total": self.total,
            "failed": self.failed,
            "settings": dict(self.settings),
            "results": [
                {
                    "name": part.name,
                    "examples": len(part.rows),
                    "metric": part.outcome.metric,
                    "value": part.outcome.value,
                    "others": part.outcome.others,
                }
                for part in self.parts
                if part.outcome is not None
            ],
        }
        if self.figure is not None:
            published = {"value": self.figure.value, "source": self.figure.source}
            if content["results"]:
                published["difference"] = content["results"][0]["value"] - self.figure.value
            content["published"] = published
        return content

    def examples_as_json(self) -> list[dict[str, Any]]:
        """Every row with its `score`, 0..1."""
        return [
            dict(row) | ({"score": score} if score is not None else {})
            for part in self.parts
            for row, score in zip(part.rows, _each(part), strict=True)
        ]


@dataclass(frozen=True)
class Worst:
    """A row and its score."""

    part: str
    row: Row
    score: float = field(compare=False)


def worst(report: Report, count: int) -> list[Worst]:
    """The rows with the lowest scores, those of equal ones in the order of the data set."""
    scored = [
        Worst(part.name, row, score)
        for part in report.parts
        for row, score in zip(part.rows, _each(part), strict=True)
        if score is not None
    ]
    return sorted(scored, key=lambda one: one.score)[:count]


def write_report(
    report: Report, directory: Path, images: Mapping[str, ImageSource], count: int
) -> None:
    """Write `save_report`'s files and the page of the `count` worst cases into a directory.

    Several processes of one evaluation may do this at the same time.
    """
    with directory_lock(directory, wait=True):
        remove_leftovers(directory)
        save_report(report, directory)
        atomic_write(directory / WORST, worst_page(report, worst(report, count), images))


def save_report(report: Report, directory: Path) -> None:
    """Write `report.json`, `examples.jsonl`, and a submission if the truth is not public."""
    atomic_write(directory / REPORT, json_text(report.as_json(), indent=1) + "\n")
    write_jsonl(directory / EXAMPLES, report.examples_as_json())
    if any(part.outcome is None for part in report.parts):
        atomic_write(directory / SUBMISSION, json_text(_submission(report)) + "\n")


def _submission(report: Report) -> list[dict[str, Any]]:
    from florence_jax.evaluation.scoring import answer_value

    rows = [row for part in report.parts for row in part.rows]
    # DocVQA's server has its own name for a question's number, and VizWiz's goes by the image.
    key = {"docvqa": "questionId", "vizwiz": "image"}.get(report.benchmark, "question_id")
    return [{key: row["question_id"], "answer": answer_value(row) or ""} for row in rows]


def _each(part: Part) -> Sequence[float | None]:
    return [None] * len(part.rows) if part.outcome is None else part.outcome.each


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
