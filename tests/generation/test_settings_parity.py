"""Several end tokens and the settings few checkpoints use: tokens and scores of transformers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from florence_jax.generation import (
    GenerationConfig,
    apply_logits_processors,
    make_constraint,
    make_plan,
)
from florence_jax.generation.constraints import NEVER as IMPOSSIBLE
from florence_jax.generation.constraints import ended_by
from tests.generation.florence import (
    generate_ours,
    generate_reference,
    random_pair,
    random_prompts,
    reference_is_undecided,
)
from tests.generation.prefix_reference import PrefixReference
from tests.generation.random_automata import random_automaton
from tests.generation.table_model import EOS, facts, generate_jax, generate_torch, random_tables
from tests.token_walk import accepts

VOCAB = 12
GREEDY = {}
PUBLISHED = {"num_beams": 3, "early_stopping": True, "no_repeat_ngram_size": 3}
NEVER = {
    "num_beams": 4,
    "early_stopping": "never",
    "num_return_sequences": 2,
    "length_penalty": 0.5,
}
# Settings of one list compile one program.
CASES = {
    "two ends": (
        PUBLISHED,
        [
            {"eos_token_id": (EOS, 5)},
            {"eos_token_id": (EOS, 5), "min_new_tokens": 5},
            {"eos_token_id": (EOS, 5), "forced_eos_token_id": None, "forced_bos_token_id": None},
            {"eos_token_id": (EOS, 5), "forced_eos_token_id": 5, "repetition_penalty": 1.3},
        ],
    ),
    "four ends, the model's last": (NEVER, [{"eos_token_id": (9, 5, 4, EOS)}]),
    "ends without the model's": (NEVER, [{"eos_token_id": (9, 5), "forced_eos_token_id": 9}]),
    "suppressed": (
        PUBLISHED,
        [{"suppress_tokens": (3, 7, 8)}, {"suppress_tokens": (4,), "forced_bos_token_id": None}],
    ),
    "suppressed at first": (
        PUBLISHED,
        [
            {"begin_suppress_tokens": (EOS, 3, 4, 6)},
            {"begin_suppress_tokens": (EOS, 3, 4, 6), "forced_bos_token_id": None},
        ],
    ),
    "bad words and a bias": (
        NEVER,
        [
            {
                "bad_words_ids": ((4,), (6, 7), (3, 8, 3), (5,), (EOS,)),
                "sequence_bias": (((8,), 1.5), ((6, 9), 4.0), ((EOS, 0, 3), -9.5)),
                "eos_token_id": (EOS, 5),
            },
            {
                "bad_words_ids": ((0, 4), (6, 7), (8, 3), (EOS, 0, 9), (1,), (3,)),
                "sequence_bias": (((8, 8, 7), 1.5), ((6, EOS), -4.0), ((10,), 2.0)),
                "eos_token_id": (EOS, 5),
                "forced_bos_token_id": None,
            },
        ],
    ),
    "a growing end, renormalised": (
        PUBLISHED,
        [
            {
                "exponential_decay_length_penalty": (start, 1.3),
                "eos_token_id": (EOS, 5),
                "suppress_tokens": (3,),
                "renormalize_logits": True,
            }
            for start in (0, 3)
        ],
    ),
}


@pytest.mark.parametrize("beams", [False, True], ids=["greedy", "beams"])
@pytest.mark.parametrize("name", CASES)
def test_tables(name, beams):
    search, settings = CASES[name]
    for given in settings:
        config = GenerationConfig(
            **({"max_new_tokens": 14} | (search if beams else GREEDY) | given)
        )
        for seed in range(2):
            tables = random_tables(seed, VOCAB, 8, eos=seed - 1)
            assert_equal(generate_jax(tables, config), generate_torch(tables, config), config)


def test_a_choice_of_forced_ends():
    """Greedy: between two that are forced, beams of transformers tie."""
    config = GenerationConfig(eos_token_id=(EOS, 5), forced_eos_token_id=[5, EOS], max_new_tokens=6)
    tables = random_tables(1, VOCAB, 8, eos=-3)
    assert_equal(generate_jax(tables, config), generate_torch(tables, config), config)


def assert_equal(ours, expected, config, tolerance=1e-5):
    sequences, scores, token_scores = expected
    np.testing.assert_array_equal(ours.sequences, sequences)
    if config.num_beams > 1:
        np.testing.assert_allclose(ours.sequence_scores, scores, rtol=tolerance, atol=tolerance)
    real = np.arange(token_scores.shape[1]) < ours.lengths[:, None]
    token_scores = np.where(real, token_scores, 0.0)
    np.testing.assert_allclose(ours.token_scores, token_scores, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("search", [GREEDY, PUBLISHED], ids=["greedy", "beams"])
def test_whole_models(search):
    pair = random_pair(seed=11, encoder_layers=1)
    compared = 0
    for seed in range(3):
        prompts = random_prompts(pair, seed, batch=3, length=7)
        config = GenerationConfig(
            max_new_tokens=16, eos_token_id=(EOS, 17, 30), bad_words_ids=((9,),), **search
        )
        expected = generate_reference(pair, prompts, config)
        ours = generate_ours(pair, prompts, config)
        if ours.sequences.shape != expected[0].shape or (ours.sequences != expected[0]).any():
            assert reference_is_undecided(pair, prompts, config), config
            continue
        assert_equal(ours, expected, config, tolerance=1e-4)
        compared += 1
    assert compared >= 2


@pytest.mark.parametrize("search", [GREEDY, PUBLISHED], ids=["greedy", "beams"])
def test_constrained_answers_are_whole_with_several_ends(search):
    """Token 5 ends sequences and is a word of the constraint: it would break answers off."""
    compared = 0
    for seed in range(6):
        automaton, starts = random_automaton(seed, VOCAB, 4)
        constraint = make_constraint(automaton, starts)
        confined = ended_by(constraint, (EOS, 5))
        possible = [start for start in starts if confined.least_tokens[start] < IMPOSSIBLE]
        if not possible:
            continue
        starts = [possible[row % len(possible)] for row in range(4)]
        needed = int(confined.least_tokens[starts].max()) + 1
        config = GenerationConfig(
            max_new_tokens=needed + 6, eos_token_id=(EOS, 5), length_penalty=0.7, **search
        )
        tables = random_tables(seed, VOCAB, 4)
        reduced = dataclasses.replace(
            automaton,
            class_of_token=np.asarray(confined.class_of_token),
            next_state=np.asarray(confined.next_state),
            ordered=np.asarray(confined.ordered),
        )
        reference = PrefixReference(reduced, starts, config)
        expected = generate_torch(tables, config, prefix_allowed_tokens_fn=reference)
        ours = generate_jax(tables, config, constraint=make_constraint(automaton, starts))
        for start, ids, length in zip(starts, ours.sequences, ours.lengths, strict=True):
            assert accepts(automaton, start, ids[1 : length + 1].tolist())
        if not reference.stuck:
            assert_equal(ours, expected, config)
            compared += 1
    assert compared


def test_a_constraint_may_end_with_several_tokens():
    automaton, starts = random_automaton(3, VOCAB, 1)
    classes = np.array(automaton.class_of_token)
    classes[4] = classes[EOS]
    constraint = make_constraint(dataclasses.replace(automaton, class_of_token=classes), starts)
    needed = int(constraint.least_tokens[starts].max()) + 1
    tables = random_tables(0, VOCAB, 1)
    tables.bias[:, 4] += 50.0
    config = GenerationConfig(max_new_tokens=needed + 4, eos_token_id=(EOS, 4))
    ours = generate_jax(tables, config, constraint=constraint)
    assert ours.sequences[0, ours.lengths[0]] == 4
    with pytest.raises(ValueError, match=r"eos_token_id=2, but constrained answers end with"):
        generate_jax(tables, dataclasses.replace(config, eos_token_id=EOS), constraint=constraint)
    config = dataclasses.replace(config, forced_eos_token_id=9)
    with pytest.raises(ValueError, match="forced_eos_token_id=9 would break off"):
        generate_jax(tables, config, constraint=constraint)


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize(
    ("settings", "warpers"),
    [
        ({"min_p": 0.2}, [(theirs.MinPLogitsWarper, {"min_p": 0.2})]),
        ({"typical_p": 0.6}, [(theirs.TypicalLogitsWarper, {"mass": 0.6})]),
        ({"epsilon_cutoff": 0.05}, [(theirs.EpsilonLogitsWarper, {"epsilon": 0.05})]),
        ({"eta_cutoff": 0.2}, [(theirs.EtaLogitsWarper, {"epsilon": 0.2})]),
        (
            {"min_p": 0.02, "typical_p": 0.9, "epsilon_cutoff": 0.01, "eta_cutoff": 0.05},
            [
                (theirs.MinPLogitsWarper, {"min_p": 0.02}),
                (theirs.TypicalLogitsWarper, {"mass": 0.9}),
                (theirs.EpsilonLogitsWarper, {"epsilon": 0.01}),
                (theirs.EtaLogitsWarper, {"epsilon": 0.05}),
            ],
        ),
    ],
)
def test_sampling_filters_keep_the_same_tokens(settings, warpers, beams):
    """With two end tokens beams keep three tokens, one more than there are ends."""
    keep = 3 if beams > 1 else 1
    config = GenerationConfig(
        do_sample=True,
        top_k=0,
        num_beams=beams,
        eos_token_id=(EOS, 5),
        forced_bos_token_id=None,
        forced_eos_token_id=None,
        max_new_tokens=9,
        **settings,
    )
    plan, values = make_plan(config, facts(40))
    rng = np.random.default_rng(0)
    scores = 3 * rng.standard_normal((3, 2, 40)).astype(np.float32)
    scores[:, :, 7] = -np.inf
    got = apply_logits_processors(
        jnp.asarray(scores), jnp.ones((3, 2, 9), int), jnp.int32(4), plan, values
    )
    flat = torch.from_numpy(scores.reshape(6, 40))
    for warper, arguments in warpers:
        flat = warper(min_tokens_to_keep=keep, **arguments)(None, flat)
    np.testing.assert_array_equal(got, flat.numpy().reshape(3, 2, 40))
    assert np.isfinite(got).sum(-1).min() >= keep
    assert np.isfinite(got).sum() < np.isfinite(scores).sum()


def test_filters_do_nothing_without_sampling():
    config = GenerationConfig(min_p=0.5, typical_p=0.5, epsilon_cutoff=0.2, eta_cutoff=0.2)
    plan, values = make_plan(config, facts(VOCAB))
    assert plan == make_plan(GenerationConfig(), facts(VOCAB))[0]
    assert values.optional is None


def test_programs_without_the_settings_are_as_they_were():
    """Neutral settings leave no trace, and other values of set ones need no other program."""

    def program(**settings):
        plan, values = make_plan(GenerationConfig(num_beams=2, **settings), facts(VOCAB))
        scores, sequences = jnp.zeros((1, 2, VOCAB)), jnp.zeros((1, 2, 9), jnp.int32)
        lower = jax.jit(
            lambda values: apply_logits_processors(scores, sequences, jnp.int32(1), plan, values)
        )
        return lower.lower(values).as_text(), plan

    default = program()
    assert program(suppress_tokens=[], bad_words_ids=[], min_p=None, eos_token_id=[EOS]) == default
    assert program(bad_words_ids=[[EOS]], exponential_decay_length_penalty=None) == default
    one = program(suppress_tokens=(3,), bad_words_ids=((4, 5), (6,)))
    assert one == program(suppress_tokens=(4, 5), bad_words_ids=((7,), (8, 9)))
    assert one != default


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eos_token_id": (EOS, 99)}, "eos_token_id=.2, 99. is outside the vocabulary of 12"),
        ({"suppress_tokens": (99,)}, "suppress_tokens names token 99, outside the vocabulary"),
        ({"bad_words_ids": ((3, 99),)}, "bad_words_ids names token 99, outside"),
        ({"suppress_tokens": (EOS,)}, "forced_eos_token_id=2 is among suppress_tokens"),
    ],
)
def test_impossible_combinations_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_plan(GenerationConfig(**settings), facts(VOCAB))
