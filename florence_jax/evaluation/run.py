"""Evaluation on the batch runner: plan the prompts of a data set, read its rows, score them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence_jax.batch.blocks import is_block_name, read_rows
from florence_jax.batch.job import Item, ListSource, Row
from florence_jax.evaluation.custom_scoring import score_custom, scorings_of
from florence_jax.evaluation.datasets.custom import read_custom
from florence_jax.evaluation.datasets.dataset import Dataset, LayoutError
from florence_jax.evaluation.paper_results import published_score, published_variants
from florence_jax.evaluation.registry import Benchmark, benchmark_named
from florence_jax.evaluation.report import Part, Report
from florence_jax.evaluation.scoring import answer_value, check_programs, score_detection
from florence_jax.inference.requests import Query
from florence_jax.processing.request_check import tasks_of_data

OWN = "own"
ROWS = "rows"


class EvaluationError(ValueError):
    """An evaluation cannot be finished; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A data set with its prompts.

    Attributes:
        benchmark: a name of `BENCHMARKS`, or "own".
        split: split of the data set; "all" for custom data without splits.
        dataset: every item of the split, with its query.
        limit: number of items that are asked, from the first; None for all.
        prompt: as in `Benchmark.prompt`.
        own_tasks: tasks beside the 15 that the data set itself asks.
    """

    benchmark: str
    split: str
    dataset: Dataset
    limit: int | None
    prompt: str
    own_tasks: frozenset[str] = frozenset()

    @property
    def items(self) -> Sequence[Item]:
        """The items that are asked."""
        return self.dataset.items[: self.limit]

    @property
    def known(self) -> Benchmark | None:
        """The published data set; None for custom data."""
        return None if self.benchmark == OWN else benchmark_named(self.benchmark)

    def source(self) -> ListSource:
        """The source for the batch runner, which refuses to go on with other files or prompts."""
        digests = {path.name: _sha256(path) for path in self.dataset.files}
        asked = {"benchmark": self.benchmark, "prompt": self.prompt, "files": digests}
        return ListSource(self.items, asked)


def plan_evaluation(
    benchmark: str,
    data: str | Path,
    *,
    split: str | None = None,
    limit: int | None = None,
    prompt: str | None = None,
    image_root: str | Path | None = None,
) -> Plan:
    """Read a data set and make its prompts.

    Args:
        benchmark: a name of `BENCHMARKS`, or "own".
        data: the folder of the published layout, or a custom file or folder.
        split: by default the data set's first; of a custom folder the only one.
        limit: number of examples; None for all.
        prompt: replaces the data set's prompt; `{input}` stands for its question or expression.
        image_root: folder of the images of a custom file.

    Raises:
        LayoutError: a file is missing or not as expected.
        ValueError: no such data set or split, or options that do not go with it.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"the limit is {limit}: at least 1 example is needed")
    if benchmark == OWN:
        path, asked_split = Path(data), split
        if split is not None and path.is_file():
            raise ValueError(f"own data has no split {split!r}: name the file itself by --data")
        root = Path(image_root) if image_root else None
        dataset = _read(benchmark, lambda: read_custom(path, root, asked_split))
        split = split or "all"
        usual = "<OD>" if "coco" in dataset.truth else "{input}"
    else:
        known = benchmark_named(benchmark)
        if image_root is not None:
            raise ValueError(f"--image-root is for own data: {benchmark} has its own folders")
        split = split or known.splits[0]
        if split not in known.splits:
            raise ValueError(
                f"{benchmark} has no split {split!r}, it has {', '.join(known.splits)}"
            )
        dataset = _read(benchmark, lambda: known.read(Path(data), split))
        usual = known.prompt
    prompt = prompt or usual
    asked = [_asked(item, prompt) for item in dataset.items]
    repeated = [name for name, count in Counter(item.id for item in asked).items() if count > 1]
    if repeated:
        # Rows are found again by their ids.
        raise LayoutError(
            f"{dataset.files[-1]} has {len(repeated)} ids more than once, such as "
            f"{repeated[0]!r:.80}: give each example an id of its own"
        )
    # The data's own tasks; a prompt of the command line adds none.
    own = [_asked(item, form).queries[0].prompt for form in (usual, "{input}") for item in asked]
    return Plan(
        benchmark=benchmark,
        split=split,
        dataset=dataclasses.replace(dataset, items=asked),
        limit=limit,
        prompt=prompt,
        own_tasks=tasks_of_data(own),
    )


def check_scoring(plan: Plan) -> list[str]:
    """Check, before a model answers, that the scores can be computed here.

    Returns:
        Sentences about scores that will be missing.

    Raises:
        ModuleNotFoundError: a package that the scores need is missing or broken.
    """
    if plan.known is None and "coco" not in plan.dataset.truth:
        return check_programs(scorings_of(str(item.extra["input"]) for item in plan.items))
    if any(item.extra["truth"] is None for item in plan.items):
        return []
    return check_programs([plan.known.score if plan.known else score_detection])


def read_all_rows(plan: Plan, directory: Path) -> list[Row]:
    """The rows of a finished run, in the order of the data set.

    Raises:
        EvaluationError: rows are missing, or are of other examples.
    """
    return rows_in_order(plan.items, directory)


def rows_in_order(items: Sequence[Item], directory: Path) -> list[Row]:
    """The rows of a finished run, one for each item; errors as `read_all_rows`."""
    rows = {row["id"]: row for row in _rows(directory)}
    missing = [item.id for item in items if item.id not in rows]
    if missing:
        raise EvaluationError(
            f"{directory} lacks {len(missing)} of {len(items)} rows, such as {missing[0]}: "
            "run the same command again, it goes on where it stopped"
        )
    return [rows[item.id] for item in items]


def score_rows(
    plan: Plan, rows: Sequence[Row], *, model: str | Path, settings: Mapping[str, Any]
) -> Report:
    """Score the rows of a finished run.

    Args:
        plan: the data set and its prompts.
        rows: all its rows, in order.
        model: hub id or path; its last part finds the published score.
        settings: settings of the run, for the report.

    Raises:
        EvaluationError: the truth of a row cannot be compared with.
    """
    known, name = plan.known, str(model)
    figure, variants = None, []
    if known is not None and plan.split in known.columns:
        column = known.columns[plan.split]
        figure, variants = published_score(name, column), published_variants(name, column)
    return Report(
        benchmark=plan.benchmark,
        split=plan.split,
        model=name,
        settings=settings,
        parts=_parts(plan, known, rows),
        examples=len(plan.items),
        total=len(plan.dataset.items),
        failed=sum(answer_value(row) is None for row in rows),
        figure=figure,
        variants=variants,
    )


def _parts(plan: Plan, known: Benchmark | None, rows: Sequence[Row]) -> list[Part]:
    truth = plan.dataset.truth
    if known is None and "coco" not in truth:
        scored = score_custom(rows).items()
        return [Part(name=task, rows=own, outcome=outcome) for task, (own, outcome) in scored]
    title = known.title if known else "<OD>"
    if any(row["truth"] is None for row in rows):
        return [Part(name=title, rows=rows, outcome=None)]
    score = known.score if known else score_detection
    try:
        return [Part(name=title, rows=rows, outcome=score(rows, truth))]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise EvaluationError(
            f"the answers are kept, but the truth of {plan.benchmark} cannot be compared with "
            f"({type(error).__name__}: {error}): check {', '.join(map(str, plan.dataset.files))}, "
            "then run the same command with --score-only"
        ) from error


def _read(benchmark: str, read: Callable[[], Dataset]) -> Dataset:
    try:
        return read()
    except LayoutError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # For example a number in place of a list: not every fault has a message of its own.
        raise LayoutError(
            f"the files of {benchmark} are not what its authors publish "
            f"({type(error).__name__}: {error}): download them again"
        ) from error


def _asked(item: Item, prompt: str) -> Item:
    text = prompt.replace("{input}", str(item.extra.get("input", "")))
    return dataclasses.replace(item, queries=(Query(prompt=text),))


def _rows(directory: Path) -> Iterator[Row]:
    if directory.is_dir():
        for path in sorted(directory.iterdir()):
            if is_block_name(path.name):
                yield from read_rows(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
