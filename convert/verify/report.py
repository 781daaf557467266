"""Write a comparison as a Markdown table, as JSON or as a plot."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from convert.verify.metrics import Row, first_over

Rows = Mapping[str, list[Row]]

# (heading, field, format). The pairs "ours, PyTorch" are distances from the truth.
_COLUMNS = (
    ("stage", "stage", "s"),
    ("max abs", "max_abs", ".1e"),
    ("relative", "relative", ".1e"),
    ("cosine", "cosine", ".7f"),
    ("KL", "kl", ".1e"),
    ("top-1", "top1", ".3f"),
    ("to truth: ours", "error", ".1e"),
    ("PyTorch", "reference_error", ".1e"),
    ("bound", "bound", ".1e"),
    ("alone: ours", "own_error", ".1e"),
    ("PyTorch", "own_reference_error", ".1e"),
    ("bound", "own_bound", ".1e"),
)


def table(rows: list[Row]) -> Iterator[str]:
    """Lines of a Markdown table, aligned; a last column marks what is over its tolerance.

    Columns that are empty throughout are left out.
    """
    columns = [
        (heading, field, form)
        for heading, field, form in _COLUMNS
        if any(getattr(row, field) is not None for row in rows)
    ]
    first = first_over(rows)
    lines = [[heading for heading, _, _ in columns] + [""]]
    for row in rows:
        values = [(getattr(row, field), form) for _, field, form in columns]
        mark = "FIRST OVER" if row is first else "over" if row.is_over else ""
        lines.append([*("" if v is None else format(v, form) for v, form in values), mark])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for number, line in enumerate(lines):
        padded = [line[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        yield "| " + " | ".join(padded) + " |"
        if number == 0:
            yield "| " + " | ".join("-" * width for width in widths) + " |"


def verdict(dtype: str, rows: list[Row]) -> str:
    """A sentence on whether the two agree in `dtype`, and if not, from which stage on."""
    first = first_over(rows)
    if first is None:
        return f"{dtype}: all {len(rows)} stages are within their tolerances"
    over = sum(row.is_over for row in rows)
    if first.own_error is not None and first.own_bound is not None:
        found = f"alone it is {first.own_error:.2g} off the truth; {first.own_bound:.2g} passes"
    else:
        found = f"it is {first.error:.2g} off; {first.bound:.2g} passes"
    return f"{dtype}: {over} of {len(rows)} stages over, the first is {first.stage}: {found}"


def as_json(rows: Rows, **about: Any) -> dict[str, Any]:
    """All rows and verdicts; `about` describes what was compared."""
    return about | {
        "passed": not any(first_over(found) for found in rows.values()),
        "dtypes": {
            dtype: {
                "first_over": first.stage if (first := first_over(found)) else None,
                "rows": [dataclasses.asdict(row) | {"over": row.is_over} for row in found],
            }
            for dtype, found in rows.items()
        },
    }


def plot(rows: Rows, title: str, path: Path) -> None:
    """Draw each stage's distance from the truth, ours and PyTorch's, one panel per dtype.

    Raises:
        ValueError: matplotlib is not installed, or it cannot write `path`'s kind of file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("--plot needs matplotlib: pip install matplotlib") from error

    # Answers are in other units than stages.
    stages = {dtype: [r for r in found if r.relative is not None] for dtype, found in rows.items()}
    names = [row.stage for row in max(stages.values(), key=len)]
    size = max(8.0, 2 + 0.24 * len(names)), 2.8 + 2.4 * len(stages)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(len(stages), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (dtype, found) in zip(panels, stages.items(), strict=True):
        _draw(panel, dtype, found)
    panels[-1].set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, ncols=len(labels), loc="outside lower center")
    figure.savefig(path, dpi=120)


def _draw(panel: Any, dtype: str, rows: list[Row]) -> None:
    for label, field, style in (
        ("tolerance", "bound", {"color": "0.6", "linestyle": "--"}),
        ("PyTorch", "reference_error", {"color": "tab:blue", "marker": "o", "markersize": 3}),
        ("florence_jax", "error", {"color": "tab:orange", "marker": "o", "markersize": 3}),
        ("each stage alone", "own_error", {"color": "tab:green", "linestyle": ":"}),
        ("its tolerance", "own_bound", {"color": "tab:green", "linestyle": "--", "alpha": 0.4}),
    ):
        values = [getattr(row, field) for row in rows]
        if any(value is not None for value in values):
            # Zero has no place on a logarithmic axis.
            panel.plot([value or float("nan") for value in values], label=label, **style)
    first = first_over(rows)
    if first is not None:
        panel.axvline(rows.index(first), color="tab:red", alpha=0.3, linewidth=6)
        panel.set_title(f"first over: {first.stage}", color="tab:red", fontsize=9, loc="right")
    panel.set_yscale("log")
    panel.set_ylabel(f"{dtype}\ndistance from truth", fontsize=9)
    panel.grid(alpha=0.3)
