"""A measured case as text."""

from __future__ import annotations

from tests.benchmarks.rivals.engines.engine import OURS
from tests.benchmarks.rivals.results import CaseResult, Row

_COLUMNS = ("", "median", "fastest", "slowest", "CPU", "others", "roofline", "/ ours")
_LABEL_WIDTH, _WIDTH = 34, 10


def format_table(result: CaseResult) -> str:
    """Ours first, then the others from fast to slow, then those without a time."""
    lines = [f"{result.case}: {result.title}"]
    if result.floor is not None and result.gflop is not None:
        lines.append(f"{result.gflop:,.4g} GFLOP, at least {_seconds(result.floor)} here")
    if any(row.summary is not None for row in result.rows.values()):
        lines.append(_line(_COLUMNS))
    lines += [_row(result, name, row) for name, row in sorted(result.rows.items(), key=_rank)]
    rival, ratio = result.fastest_rival(), result.ratio()
    if rival is not None and ratio is not None and OURS in result.rows:
        lines.append(f"fastest rival: {result.rows[rival].label}, {ratio:.2f} times our time")
    if result.images is not None:
        speeds = (
            f"{row.label} {result.images / row.summary.median:.3g}"
            for _, row in sorted(result.rows.items(), key=_rank)
            if row.summary is not None
        )
        lines.append(f"images per second: {', '.join(speeds)}")
    return "\n".join(lines)


def _row(result: CaseResult, name: str, row: Row) -> str:
    summary = row.summary
    if summary is None:
        return f"{row.label:<{_LABEL_WIDTH}}{row.note}"
    share, ratio = result.share(name), result.ratio(name)
    return _line(
        (
            row.label,
            _seconds(summary.median),
            _seconds(summary.fastest),
            _seconds(summary.slowest),
            _seconds(summary.cpu),
            f"{summary.others:.0%}",
            "" if share is None else f"{share:.0%}",
            "" if ratio is None or name == OURS else f"{ratio:.2f}",
        )
    )


def _line(cells: tuple[str, ...]) -> str:
    label, *rest = cells
    return (f"{label:<{_LABEL_WIDTH}}" + "".join(f"{cell:>{_WIDTH}}" for cell in rest)).rstrip()


def _rank(item: tuple[str, Row]) -> tuple[int, float]:
    name, row = item
    if row.summary is None:
        return (2, 0.0)
    return (0 if name == OURS else 1, row.summary.median)


def _seconds(value: float) -> str:
    return f"{value * 1e3:.3g} ms" if value < 0.1 else f"{value:.3g} s"
