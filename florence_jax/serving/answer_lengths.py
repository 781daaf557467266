"""`AnswerLengths`: which tasks have short answers, learnt from the answers themselves."""

from __future__ import annotations

import threading

# Queues of the engine.
SHORT, LONG = 0, 1
# Half of the smallest token buffer: longer answers may outgrow it.
_SHORT_TOKENS = 32
_MEMORY = 0.9
_MAX_TASKS = 1024


class AnswerLengths:
    """A running mean of the tokens of answers to each task.

    All rows of a batch are decoded together until the last one ends, so a caption in the batch of a
    page of text would wait for the page. Tasks with short answers have a queue of their own. A task
    that nobody has asked yet counts as long.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._means: dict[str, float] = {}

    def queue_of(self, task: str) -> int:
        """`SHORT` or `LONG`."""
        return SHORT if self._means.get(task, _SHORT_TOKENS + 1) <= _SHORT_TOKENS else LONG

    def add(self, task: str, tokens: int) -> None:
        """An answer to `task` had so many tokens."""
        with self._lock:
            mean = self._means.get(task)
            if mean is None and len(self._means) == _MAX_TASKS:
                return
            self._means[task] = tokens if mean is None else _MEMORY * mean + (1 - _MEMORY) * tokens
