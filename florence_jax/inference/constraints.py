"""`AnswerConstraints`: the decoding constraint of a batch of requests."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from florence_jax.constrained.answer_grammars import AnswerGrammars
from florence_jax.constrained.answer_schema import AnswerSchema, answer_schema
from florence_jax.generation import Constraint, make_constraint
from florence_jax.inference.requests import Request
from florence_jax.processing import FlorenceTokenizer

# Tables are kept for the most recent lists of labels.
_KEPT = 16


class AnswerConstraints:
    """Constraints for batches of requests; a table is made once for each set of lists of labels."""

    def __init__(self, tokenizer: FlorenceTokenizer, vocab_size: int) -> None:
        self._automata = AnswerGrammars(tokenizer, vocab_size)
        self._table_of = functools.lru_cache(maxsize=_KEPT)(self._make_table)

    def __call__(self, requests: Sequence[Request]) -> Constraint:
        """The constraint of a batch with one row for each of `requests`.

        Raises:
          ValueError: labels that an answer cannot hold.
        """
        forms = [
            answer_schema(request.prompt, request.text, request.labels) for request in requests
        ]
        closed = frozenset(form for form in forms if form.labels is not None)
        table, starts = self._table_of(closed)
        return table._replace(start=np.array([starts[form] for form in forms], np.int32))

    def _make_table(
        self, closed: frozenset[AnswerSchema]
    ) -> tuple[Constraint, dict[AnswerSchema, int]]:
        automaton, starts = self._automata.automaton(closed)
        return make_constraint(automaton, []), starts


def batch_constraint(
    constraints: AnswerConstraints | None, requests: Sequence[Request]
) -> Constraint | None:
    """The constraint of a batch with a row for each of `requests`; None where answers are free.

    Raises:
        ValueError: labels that an answer cannot hold, or labels where answers are free.
    """
    if constraints is not None:
        return constraints(requests)
    labels = next((request.labels for request in requests if request.labels is not None), None)
    if labels is not None:
        raise ValueError(
            f"labels={labels!r} confine only constrained answers: pass constrained=True "
            "(--constrained) too"
        )
    return None
