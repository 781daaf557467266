"""Progress bars on standard error: on a terminal alone, as a log has no use for one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def terminal_bar(items: Iterable | None = None, *, shown: bool, **settings: Any) -> tqdm:
    """A tqdm bar over `items`, or one to update by hand.

    Args:
        items: what the bar counts.
        shown: false for none on a terminal either.
        settings: tqdm's own, such as `total`, `desc` and `unit`.
    """
    from tqdm import tqdm

    # None: tqdm itself looks whether standard error is a terminal.
    return tqdm(items, disable=None if shown else True, **settings)
