"""Constraints as transformers takes them: `prefix_allowed_tokens_fn`, in plain Python."""

from __future__ import annotations

from florence_jax.generation.constraints import DEAD, FINISHED, make_constraint
from tests.generation.table_model import EOS, PAD
from tests.token_walk import walk, walked_tokens


class PrefixReference:
    """transformers' callback for the same automaton.

    What has ended, or cannot go on, may say PAD alone, which the model never says. transformers has
    rules of its own where bans leave no legal token at all: `stuck` tells that it came to that.
    """

    def __init__(self, automaton, starts, config):
        self.automaton, self.starts, self.config = automaton, starts, config
        self.least = make_constraint(automaton, starts).least_tokens
        self.stuck = False

    def __call__(self, row, sequence):
        ids = sequence.tolist()[1:]
        if walk(self.automaton, self.starts[row], ids) in (DEAD, FINISHED):
            return [PAD]
        remaining = self.config.max_new_tokens - len(ids)
        legal = walked_tokens(self.automaton, self.least, self.starts[row], ids, remaining)
        first = not ids and self.config.forced_bos_token_id is not None
        if legal and not first:
            self.stuck |= set(legal) <= self.banned([EOS, *ids])
        return legal or [PAD]

    def banned(self, sequence):
        size = self.config.no_repeat_ngram_size
        windows = [sequence[i : i + size] for i in range(len(sequence) - size + 1)] if size else []
        last = sequence[len(sequence) - size + 1 :]
        early = {EOS} if len(sequence) <= self.config.min_new_tokens else set()
        return {window[-1] for window in windows if window[:-1] == last} | early
