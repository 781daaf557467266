"""One number for each of the 15 tasks of the world: the trainer's judges, and captions by facts.

Captions are scored by "facts", the F1 of the facts that they state, each exact (`facts`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from florence_jax.training.metrics import judge as common
from florence_jax.training.metrics.judge import Answered, Pair, Score, share
from train.shapes.facts import facts

CAPTIONS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")
METRICS = ("facts", "captions with every fact")


def judge(answered: Iterable[Answered]) -> dict[str, Score]:
    """The score of every task that was answered, in the order of `TASKS`.

    Raises:
        ValueError: a prefix of none of the 15 tasks.
    """
    return common.judge(answered, dict.fromkeys(CAPTIONS, _captions))


def _captions(pairs: Sequence[Pair]) -> Score:
    right = stated = exact = 0
    for pair in pairs:
        truth, answer = facts(pair.truth), facts(pair.answer)
        right += (truth & answer).total()
        stated += truth.total() + answer.total()
        exact += truth == answer
    value, every = METRICS
    return Score(
        metric=value,
        value=share(2 * right, stated),
        count=len(pairs),
        others={every: share(exact, len(pairs))},
    )
