"""Report of an evaluation: scores beside the published ones, as text, JSON and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from florence_jax.evaluation.paper_results import PublishedScore
from florence_jax.evaluation.scoring import Outcome, Row
from florence_jax.runtime.atomic_file import atomic_write
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
