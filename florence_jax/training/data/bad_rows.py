"""Log of unusable rows (RUN/quarantine.jsonl), which ends the run when there are too many."""

from collections.abc import Iterable
from pathlib import Path

from florence_jax.runtime.jsonl import append_lines, read_lines

# So that one bad row among the first ten does not look like a tenth of the data.
_LEAST_SEEN = 1000


class TooManyProblems(RuntimeError):
    """More rows than allowed could not be used."""


class BadRowLog:
    """RUN/quarantine.jsonl: `{"id": ..., "reason": ..., "split": ...}`, one line a row."""

    def __init__(self, path: Path, *, share: float, total: int):
        """
        Args:
            share: the share of rows that may be unusable.
            total: the number of rows in the data.
        """
        self.path, self._share, self._total = path, share, total
        self._training: dict[str, str] = {}
        # Only rows met since the start count: after a kill, data may have been mended.
        self._met: dict[str, str] = {}
        self._known: set[tuple[str, str]] = set()
        self._unwritten: list[dict[str, str]] = []
        for row in read_lines(path):
            self._note(row["split"], row["id"], row["reason"])

    def __len__(self) -> int:
        """The number of unusable rows of the training data so far."""
        return len(self._training)

    def add(self, problems: Iterable[tuple[str, str]], *, split: str = "train") -> None:
        """Write down the (id, reason) that are new.

        Raises:
            OSError: the file cannot be written; the next call tries again.
        """
        for row, reason in problems:
            if split == "train":
                self._met.setdefault(row, reason)
            if (split, row) not in self._known:
                self._note(split, row, reason)
                self._unwritten.append({"id": row, "reason": reason, "split": split})
        if self._unwritten:
            append_lines(self.path, self._unwritten)
            self._unwritten.clear()

    def check(self, seen: int) -> None:
        """
        Args:
            seen: rows that this process has drawn since the log was opened.

        Raises:
            TooManyProblems: the share is exceeded.
        """
        allowed = self._share * min(self._total, max(seen, _LEAST_SEEN))
        if len(self._met) > allowed:
            row, reason = next(iter(self._met.items()))
            raise TooManyProblems(
                f"{len(self._met)} rows of {min(seen, self._total)} seen could not be used, more "
                f"than data.quarantine_share={self._share:g} allows; the first is {row}: {reason}. "
                f"All are in {self.path}: mend the data, or raise data.quarantine_share"
            )

    def _note(self, split: str, row: str, reason: str) -> None:
        self._known.add((split, row))
        if split == "train":
            self._training[row] = reason
