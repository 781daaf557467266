"""Whole models under the tasks' own automata, against transformers with the same in Python."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from florence_jax.constrained.answer_grammars import AnswerGrammars
from florence_jax.constrained.answer_schema import answer_schema
from florence_jax.generation import GenerationConfig, make_constraint
from florence_jax.processing import demo_tokenizer
from tests.generation.florence import (
    generate_ours,
    generate_reference,
    random_pair,
    random_prompts,
    reference_is_undecided,
)
from tests.generation.prefix_reference import PrefixReference
from tests.token_walk import accepts

VOCAB = 1285
FORMS = [
    answer_schema("<OD>"),
    answer_schema("<OCR_WITH_REGION>"),
    answer_schema("<REGION_TO_CATEGORY>", labels=["cat", "car", "carpet", "dog"]),
    answer_schema("<OPEN_VOCABULARY_DETECTION>", ["cat", "cat house"]),
    answer_schema("<CAPTION>"),
    answer_schema("<REFERRING_EXPRESSION_SEGMENTATION>"),
]
SETTINGS = {
    "greedy": {},
    "beam 3": {"num_beams": 3},
    "beam 3 as published": {"num_beams": 3, "early_stopping": True, "no_repeat_ngram_size": 3},
}


@functools.cache
def florence():
    pair = random_pair(3, encoder_layers=1, vocab_size=VOCAB)
    automaton, starts = AnswerGrammars(demo_tokenizer(), VOCAB).automaton(FORMS)
    return pair, automaton, [starts[form] for form in FORMS]


@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_and_scores_equal_transformers(name):
    pair, automaton, starts = florence()
    compared = 0
    for seed in range(2):
        prompts = random_prompts(pair, seed, batch=len(FORMS), length=6)
        config = GenerationConfig(max_new_tokens=22, **SETTINGS[name])
        reference = PrefixReference(automaton, starts, config)
        arguments = {"prefix_allowed_tokens_fn": reference}
        expected, scores, token_scores = generate_reference(pair, prompts, config, **arguments)
        ours = generate_ours(pair, prompts, config, make_constraint(automaton, starts))
        for start, sequence, length in zip(starts, ours.sequences, ours.lengths, strict=True):
            assert accepts(automaton, start, sequence[1 : length + 1].tolist())
        if reference.stuck:
            continue
        if not np.array_equal(ours.sequences, expected):
            assert reference_is_undecided(pair, prompts, config, **arguments)
            continue
        compared += 1
        if config.num_beams > 1:
            np.testing.assert_allclose(ours.sequence_scores, scores, rtol=1e-4, atol=1e-4)
        real = np.arange(token_scores.shape[1]) < ours.lengths[:, None]
        np.testing.assert_allclose(
            ours.token_scores, np.where(real, token_scores, 0.0), rtol=1e-4, atol=1e-4
        )
    assert compared
