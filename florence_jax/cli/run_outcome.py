"""What a command says about a run into a directory: what it did, and how to go on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from florence_jax.runtime.atomic_file import check_writable
from florence_jax.runtime.signals import exit_on_interrupt

if TYPE_CHECKING:
    from florence_jax.batch.run import Summary


def outcome_text(summary: Summary, directory: Path, *, counts_tokens: bool = True) -> str:
    """What this process did, at which speed, and what is missing."""
    if not summary.rows and not summary.missing:
        return f"there was nothing left to do: all {summary.blocks} blocks are in {directory}/"
    speed = f"{summary.rows / summary.seconds:.2f} images/s, "
    if counts_tokens:
        speed += f"{summary.tokens / summary.seconds:.0f} tokens/s, "
    share = summary.utilization
    busy = "" if share is None else f"; the device had work for {share:.1%} of the time"
    lines = [
        f"{summary.rows} images in {summary.seconds:.1f} s ({speed}compilation included), "
        f"{summary.errors} with errors{busy}"
    ]
    if summary.missing:
        done = summary.blocks - summary.missing
        lines.append(f"{done} of {summary.blocks} blocks are done; {how_to_go_on(directory)}")
    else:
        lines.append(f"all {summary.blocks} blocks are in {directory}/")
    return "\n".join(lines)


def ran_to_end(directory: Path, work: Callable[[], Summary]) -> bool:
    """Do the work of a run into a directory; False, told to the user, where it was interrupted."""
    directory.mkdir(parents=True, exist_ok=True)
    check_writable(directory)
    with exit_on_interrupt(how_to_go_on(directory)):
        summary = work()
    if summary.missing:
        done = summary.blocks - summary.missing
        told = f"{done} of {summary.blocks} blocks are done; {how_to_go_on(directory)}"
        print(told, file=sys.stderr)
    return not summary.missing


def how_to_go_on(directory: Path) -> str:
    """The remedy of an interrupted run."""
    return f"the same command goes on with what is missing in {directory}/"
