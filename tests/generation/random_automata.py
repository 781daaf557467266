"""Random automata over the table model's tokens, with boxes in them; without torch."""

from __future__ import annotations

import numpy as np

from florence_jax.constrained.token_dfa import DFABuilder, TokenAutomaton, TokenClasses
from florence_jax.generation.constraints import FINISHED, NEVER, make_constraint

BOS, EOS = 0, 2
NEVER_CLASS, END, BEGIN, LOC, OTHERS = range(5)


def random_automaton(seed: int, vocab: int, rows: int) -> tuple[TokenAutomaton, list[int]]:
    """An automaton that can always finish, and a state to start in for each of `rows`.

    The upper half of the tokens are locations, which occur in ordered fours.
    """
    rng = np.random.default_rng(seed)
    classes = np.full(vocab, NEVER_CLASS)
    classes[[BOS, EOS]] = BEGIN, END
    locations = np.arange(vocab // 2, vocab)
    words = np.arange(3, vocab // 2)
    kinds = int(rng.integers(1, len(words) + 1))
    classes[words] = OTHERS + rng.integers(0, kinds, len(words))
    classes[locations] = LOC
    location_of_token = np.full(vocab, -1)
    location_of_token[locations] = np.arange(len(locations))
    while True:
        builder = DFABuilder(classes=TokenClasses(classes, OTHERS + kinds), end=END)
        states = [builder.add() for _ in range(6)]
        for state in states:
            after = {OTHERS + kind: int(rng.choice([0, *states])) for kind in range(kinds)}
            after |= {END: FINISHED} if rng.random() < 0.3 else {}
            box = builder.chain(LOC, [False, True, True], int(rng.choice(states)))
            after |= {LOC: box} if rng.random() < 0.6 else {}
            builder.link(state, {BEGIN: state} | after)
        automaton = builder.automaton(location_of_token, EOS)
        least = make_constraint(automaton, []).least_tokens
        starts = [state for state in states if least[state] < NEVER]
        if starts:
            return automaton, [int(rng.choice(starts)) for _ in range(rows)]
