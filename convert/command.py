"""What every program here does alike: report an error in one line, measure, check its paths."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


def guarded(program: str, action: Callable[[], int]) -> int:
    """Run `action`; the exit status is its own, 130 when interrupted, or 2 for a wrong call.

    Every error that a user can mend is a ValueError or an OSError, and says how.
    """
    try:
        return action()
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted; nothing is left half-written", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2


def check_apart(source: Path, destination: Path) -> None:
    """Refuse a destination that is the source, holds it or lies in it.

    Raises:
        ValueError: it does.
    """
    a, b = source.resolve(), destination.resolve()
    if a.is_relative_to(b) or b.is_relative_to(a):
        raise ValueError(
            f"the destination {destination} and the source {source} overlap: writing one would "
            "destroy the other; name a directory outside it"
        )


def as_size(count: int) -> str:
    """1552613376 -> "1.55 GB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count} bytes"
