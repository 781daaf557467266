"""The numpy search gives transformers' tokens, over a model that is a table."""

import numpy as np
import pytest

from florence_jax.generation import GenerationConfig
from tests.benchmarks.rivals.engines.exact_search import exact_length_search
from tests.generation.table_model import BOS, EOS, generate_torch, random_tables


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("beams", "no_repeat"), [(1, 2), (1, 3), (3, 3), (4, 2)])
def test_tokens(seed, beams, no_repeat):
    batch, tokens, vocab = 2, 14, 11
    tables = random_tables(seed, vocab, batch)
    before = np.full(batch * beams, EOS)
    last = before

    def step(ids, position, parents):
        nonlocal before, last
        before, last = (last[parents] if position else before), ids
        rows = np.repeat(tables.bias, beams, axis=0)
        logits = tables.table[before, last] + tables.drift[position] + rows
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    found = exact_length_search(
        step,
        batch=batch,
        beams=beams,
        tokens=tokens,
        no_repeat_ngram_size=no_repeat,
        start=EOS,
        bos=BOS,
        eos=EOS,
    )
    config = GenerationConfig(
        num_beams=beams,
        no_repeat_ngram_size=no_repeat,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        early_stopping=beams > 1,
    )
    np.testing.assert_array_equal(found, generate_torch(tables, config)[0])
