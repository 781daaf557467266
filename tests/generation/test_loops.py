"""The loops against transformers' own, on a model that is a table: tokens and scores.

One draw is one model, one batch and one set of settings.
"""

from __future__ import annotations

import dataclasses
import itertools
import re

import jax
import numpy as np
import pytest

from florence_jax.generation import GenerationConfig, beam_search, make_plan
from florence_jax.generation.logits_processors import keep_top_k
from tests.generation.table_model import (
    EOS,
    PAD,
    History,
    Tables,
    facts,
    generate_jax,
    generate_torch,
    random_tables,
)

# Each row compiles one program; every draw within it only changes traced values. The ordinary
# tests have each ending, each length of n-gram and each number of beams, but not all of their
# combinations.
PROGRAMS = [
    *((1, False, ngram) for ngram in (0, 2)),
    *((3, early, 0) for early in (True, False, "never")),
    (2, False, 2),
    (3, True, 3),
    (4, False, 1),
    (4, "never", 3),
    (5, True, 0),
    *(
        pytest.param(*program, marks=pytest.mark.slow)
        for program in (
            *((1, False, ngram) for ngram in (1, 3)),
            *((2, early, 0) for early in (True, False, "never")),
            *((5, early, 0) for early in (False, "never")),
            (3, False, 2),
            (3, "never", 1),
            (4, True, 2),
            (4, False, 0),
            (5, "never", 2),
        )
    ),
]
DRAWS = 24
# Small, so that sequences repeat themselves and meet; with more tokens than the longest sequence,
# so that n-gram bans never leave a row without any (where transformers returns leftovers).
VOCAB, BATCH = 17, 3
# The published sizes start at 64: these make every search outgrow its buffers, some twice.
BUFFERS = (4, 9, 64)


@pytest.mark.parametrize(("beams", "early", "ngram"), PROGRAMS)
def test_tokens_and_scores_equal_transformers(beams, early, ngram):
    rng = np.random.default_rng([beams, ngram, {True: 0, False: 1, "never": 2}[early]])
    returned = int(rng.integers(1, beams + 1))
    for draw in range(DRAWS):
        config = GenerationConfig(
            num_beams=beams,
            early_stopping=early,
            no_repeat_ngram_size=ngram,
            num_return_sequences=returned,
            max_new_tokens=int(rng.integers(3, 16)),
            min_new_tokens=int(rng.choice([0, 0, 2, 3])),
            length_penalty=float(rng.choice([0.5, 1.0, 2.0, 0.0, -1.0])),
            repetition_penalty=float(rng.choice([1.0, 1.0, 1.3, 0.7])),
            # With forced ends, with neither, and with each alone.
            forced_bos_token_id="bos" if draw % 2 else None,
            forced_eos_token_id="eos" if draw % 4 < 2 else None,
        )
        tables = random_tables(
            int(rng.integers(2**31)), VOCAB, BATCH, eos=float(rng.choice([-2.0, 0.0, 2.0]))
        )
        assert_equals_transformers(tables, config)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("limit", [1, 2])
def test_the_shortest_answers(beams, limit):
    for forced_bos, forced_eos in itertools.product(("bos", None), ("eos", None)):
        config = GenerationConfig(
            num_beams=beams,
            max_new_tokens=limit,
            forced_bos_token_id=forced_bos,
            forced_eos_token_id=forced_eos,
        )
        assert_equals_transformers(random_tables(limit, VOCAB, BATCH), config)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_row_does_not_depend_on_its_neighbours(beams):
    config = GenerationConfig(num_beams=beams, max_new_tokens=12, early_stopping=True)
    tables = random_tables(7, VOCAB, 5)
    together = generate_jax(tables, config)
    for row in range(5):
        alone = generate_jax(tables._replace(bias=tables.bias[row : row + 1]), config)
        length = int(alone.lengths[0])
        assert length == together.lengths[row]
        np.testing.assert_array_equal(alone.sequences[0], together.sequences[row, : length + 1])
        np.testing.assert_allclose(
            alone.sequence_scores[0], together.sequence_scores[row], rtol=1e-6
        )


@pytest.mark.parametrize("beams", [1, 3])
def test_scores_agree_with_each_other(beams):
    config = GenerationConfig(num_beams=beams, max_new_tokens=12, length_penalty=0.7)
    out = generate_jax(random_tables(3, VOCAB, 6, eos=1.0), config)
    beyond = np.arange(out.token_scores.shape[1]) >= out.lengths[:, None]
    assert (out.token_scores[beyond] == 0).all()
    assert (out.sequences[:, 1:][beyond] == PAD).all()
    assert (out.sequences[:, 0] == EOS).all()
    np.testing.assert_allclose(
        out.token_scores.sum(1) / out.lengths**0.7, out.sequence_scores, rtol=1e-5
    )


def test_processors_see_reordered_beams():
    """Banned n-grams are those of the running sequence, so no returned beam ever repeats one."""
    config = GenerationConfig(
        num_beams=5, num_return_sequences=5, no_repeat_ngram_size=2, max_new_tokens=40
    )
    out = generate_jax(random_tables(11, VOCAB, 4, eos=-4.0), config)
    for sequence, length in zip(out.sequences, out.lengths, strict=True):
        bigrams = list(itertools.pairwise(sequence[: length + 1].tolist()))
        bigrams = bigrams[:-1]  # a forced `</s>` may repeat
        assert len(bigrams) == len(set(bigrams))


def test_a_row_that_nothing_can_complete_still_answers():
    """Each token once and never `</s>`: after six tokens nothing is left to say."""
    config = GenerationConfig(
        num_beams=2, no_repeat_ngram_size=1, max_new_tokens=20, forced_eos_token_id=None
    )
    out = generate_jax(random_tables(5, 7, 2), config)
    assert (out.lengths == 6).all()
    assert (out.sequence_scores <= -1e8).all()


def test_beam_search_never_sorts_the_vocabulary():
    settings = {"num_beams": 3, "no_repeat_ngram_size": 3, "early_stopping": True}
    vocab = 4000
    shapes = ((1, vocab), (1, vocab), (2, vocab))
    tables = Tables(*(np.zeros(shape, np.float32) for shape in shapes))
    plan, values = make_plan(GenerationConfig(**settings), facts(vocab))

    def search(tables, values):
        def step(tokens, index, cache):
            return tables.table[tokens * 0] + tables.bias[:, None], cache

        return beam_search(step, History(np.zeros((2, 3, 64), np.int32)), 2, plan, values)

    assert not large_sorts(jax.jit(search).lower(tables, values), vocab)


def test_top_k_never_sorts_the_vocabulary():
    """Only the threshold is used: without the barrier in `best` XLA:CPU sorts all logits."""
    filtered = jax.jit(lambda scores: keep_top_k(scores, 50, 1))
    assert not large_sorts(filtered.lower(np.zeros((2, 3, 4000), np.float32)), 4000)


def large_sorts(lowered: jax.stages.Lowered, vocab: int) -> list[str]:
    sorts = re.findall(r"\[(\S+)\]\S* sort\(", lowered.compile().as_text())
    return [shape for shape in sorts if max(map(int, shape.split(","))) >= vocab]


def test_traced_settings_share_one_program():
    from tests.generation.table_model import _run

    base = GenerationConfig(num_beams=2, max_new_tokens=10, early_stopping=True)
    tables = random_tables(0, VOCAB, 2)
    generate_jax(tables, base)
    programs = _run._cache_size()
    for change in (
        {"max_new_tokens": 60},
        {"min_new_tokens": 3},
        {"length_penalty": -0.5},
        {"repetition_penalty": 1.4},
        {"temperature": 0.3},
        {"top_p": 0.5},
        {"top_k": 7},
        {"forced_bos_token_id": None},
        {"forced_eos_token_id": 5},
    ):
        generate_jax(tables, dataclasses.replace(base, **change))
    assert _run._cache_size() == programs


def assert_equals_transformers(tables: Tables, config: GenerationConfig) -> None:
    ours = generate_jax(tables, config, buffers=BUFFERS)
    sequences, scores, token_scores = generate_torch(tables, config)
    np.testing.assert_array_equal(ours.sequences, sequences, err_msg=str(config))
    if config.num_beams == 1:
        # transformers scores the padding of a finished row too.
        token_scores = np.where(
            np.arange(token_scores.shape[1]) < ours.lengths[:, None], token_scores, 0.0
        )
    else:
        # Sums of up to 15 log-probabilities, each rounded in float32 by either library.
        np.testing.assert_allclose(
            ours.sequence_scores, scores, rtol=2e-6, atol=2e-6, err_msg=str(config)
        )
    np.testing.assert_allclose(
        ours.token_scores, token_scores, rtol=2e-6, atol=2e-6, err_msg=str(config)
    )
