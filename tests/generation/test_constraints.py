"""Constraints against transformers' `prefix_allowed_tokens_fn` and plain Python."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from florence_jax.constrained.token_dfa import DFABuilder, TokenClasses
from florence_jax.generation import GenerationConfig, make_plan
from florence_jax.generation.constraints import (
    FINISHED,
    NEVER,
    allowed_tokens,
    check_rows,
    least_tokens,
    make_constraint,
    mask_illegal,
)
from tests.generation.prefix_reference import PrefixReference
from tests.generation.random_automata import END, random_automaton
from tests.generation.table_model import (
    EOS,
    PAD,
    _run,
    facts,
    generate_jax,
    generate_torch,
    random_tables,
)
from tests.token_walk import accepts, walk, walked_tokens

VOCAB, BATCH = 17, 3
BUFFERS = (4, 9, 64)
# How loops end without a constraint: test_loops.py.
PROGRAMS = [
    *((1, False, ngram) for ngram in (0, 3)),
    (2, False, 2),
    (3, True, 3),
    (3, "never", 0),
    *(
        pytest.param(*program, marks=pytest.mark.slow)
        for program in ((1, False, 2), (3, True, 0), (3, False, 0), (5, "never", 0))
    ),
]


@pytest.mark.parametrize(("beams", "early", "ngram"), PROGRAMS)
def test_tokens_and_scores_equal_transformers(beams, early, ngram):
    rng = np.random.default_rng([beams, ngram, {True: 0, False: 1, "never": 2}[early]])
    compared = 0
    for draw in range(8):
        seed = int(rng.integers(2**31))
        automaton, starts = random_automaton(seed, VOCAB, BATCH)
        constraint = make_constraint(automaton, starts)
        needed = int(constraint.least_tokens[starts].max()) + 1
        config = GenerationConfig(
            num_beams=beams,
            early_stopping=early,
            no_repeat_ngram_size=ngram,
            max_new_tokens=needed + int(rng.integers(10)),
            min_new_tokens=int(rng.choice([0, 0, 2])),
            length_penalty=float(rng.choice([0.5, 1.0, 2.0])),
            repetition_penalty=float(rng.choice([1.0, 1.3])),
            forced_bos_token_id="bos" if draw % 2 else None,
            forced_eos_token_id="eos" if draw % 4 < 2 else None,
        )
        tables = random_tables(seed, VOCAB, BATCH, eos=float(rng.choice([-2.0, 0.0])))
        tables.bias[:, PAD] = -np.inf
        reference = PrefixReference(automaton, starts, config)
        expected = generate_torch(tables, config, prefix_allowed_tokens_fn=reference)
        if reference.stuck:
            continue
        compared += 1
        ours = generate_jax(tables, config, buffers=BUFFERS, constraint=constraint)
        sequences, scores, token_scores = expected
        np.testing.assert_array_equal(ours.sequences, sequences, err_msg=f"{config} {seed}")
        if beams > 1:
            np.testing.assert_allclose(ours.sequence_scores, scores, rtol=2e-6, atol=2e-6)
        real = np.arange(token_scores.shape[1]) < ours.lengths[:, None]
        expected_scores = np.where(real, token_scores, 0.0)
        np.testing.assert_allclose(ours.token_scores, expected_scores, rtol=2e-6, atol=2e-6)
    assert compared >= 4


@pytest.mark.parametrize("settings", [
    {},
    {"no_repeat_ngram_size": 1},
    {"num_beams": 3, "no_repeat_ngram_size": 2, "num_return_sequences": 3, "early_stopping": True},
    {"num_beams": 3, "no_repeat_ngram_size": 1, "num_return_sequences": 3},
    {"do_sample": True, "num_return_sequences": 3, "min_new_tokens": 9, "top_p": 0.9},
    {"do_sample": True, "num_beams": 2, "no_repeat_ngram_size": 2, "top_k": 3, "top_p": 0.8},
])  # fmt: skip
def test_every_answer_is_accepted_whatever_is_banned(settings):
    """Also those that the limit cuts, and all that are returned."""
    for seed in range(8):
        automaton, starts = random_automaton(seed, VOCAB, BATCH)
        constraint = make_constraint(automaton, starts)
        needed = int(constraint.least_tokens[starts].max()) + 1
        for limit in (needed, needed + 1, needed + 5, 30):
            config = GenerationConfig(max_new_tokens=max(limit, 9), **settings)
            tables = random_tables(seed, VOCAB, BATCH)
            out = generate_jax(tables, config, jax.random.key(seed), constraint=constraint)
            own = np.repeat(starts, config.num_return_sequences)
            for start, sequence, length in zip(own, out.sequences, out.lengths, strict=True):
                ids = sequence[1 : length + 1].tolist()
                assert accepts(automaton, start, ids), (seed, limit, ids)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_limit_is_used_to_the_last_token_and_one_less_is_an_error(beams):
    for seed in range(12):
        automaton, starts = random_automaton(seed, VOCAB, BATCH)
        constraint = make_constraint(automaton, starts)
        least = constraint.least_tokens[starts]
        needed = int(least.max()) + 1
        config = GenerationConfig(num_beams=beams, max_new_tokens=needed)
        out = generate_jax(random_tables(seed, VOCAB, BATCH), config, constraint=constraint)
        assert out.lengths[least.argmax()] == needed
        message = f"max_new_tokens={needed - 1} is too few .* row {least.argmax()} takes {needed} "
        with pytest.raises(ValueError, match=message):
            make_plan(
                dataclasses.replace(config, max_new_tokens=needed - 1), facts(VOCAB), constraint
            )
        unforced = dataclasses.replace(config, max_new_tokens=needed - 1, forced_bos_token_id=None)
        out = generate_jax(random_tables(seed, VOCAB, BATCH), unforced, constraint=constraint)
        assert out.lengths[least.argmax()] == needed - 1


def test_the_distance_to_the_end_is_the_shortest_way():
    for seed in range(20):
        automaton, _ = random_automaton(seed, VOCAB, BATCH)
        states = len(automaton.next_state)
        shortest = [NEVER] * states
        shortest[FINISHED] = 0
        for _ in range(states):
            for state in range(2, states):
                ways = [shortest[after] for after in automaton.next_state[state] if after]
                shortest[state] = min(shortest[state], *(way + 1 for way in ways), NEVER)
        np.testing.assert_array_equal(least_tokens(automaton.next_state), shortest)


def test_legal_tokens_are_those_of_the_slow_walk():
    for seed in range(8):
        automaton, starts = random_automaton(seed, VOCAB, 1)
        constraint = make_constraint(automaton, starts)
        rng = np.random.default_rng(seed)
        ids: list[int] = []
        for _ in range(12):
            remaining = int(rng.integers(1, 9))
            state = walk(automaton, starts[0], ids)
            sequence = np.full((1, 1, 20), 99)
            sequence[0, 0, : len(ids) + 1] = [EOS, *ids]
            legal = allowed_tokens(
                constraint,
                jnp.full((1, 1), state),
                jnp.asarray(sequence),
                jnp.int32(len(ids)),
                jnp.int32(remaining),
            )
            least = constraint.least_tokens
            expected = walked_tokens(automaton, least, starts[0], ids, remaining)
            assert np.flatnonzero(legal[0, 0]).tolist() == expected
            choices = walked_tokens(automaton, least, starts[0], ids, 99)
            ids.append(int(rng.choice([token for token in choices if token != EOS] or [EOS])))
            if ids[-1] == EOS:
                break


def test_bans_give_way_only_where_nothing_else_is_left():
    scores = jnp.array([[[-1.0, -2.0, -3.0, -4.0]]])
    banned = scores.at[0, 0, 1].set(-jnp.inf)
    legal = jnp.array([[[False, True, True, False]]])
    np.testing.assert_array_equal(
        mask_illegal(banned, scores, legal), [[[-np.inf, -np.inf, -3.0, -np.inf]]]
    )
    banned = banned.at[0, 0, 2].set(-jnp.inf)
    np.testing.assert_array_equal(
        mask_illegal(banned, scores, legal), [[[-np.inf, -2.0, -3.0, -np.inf]]]
    )


def test_fewer_answers_than_beams_repeat_the_best():
    """One answer of two tokens and one of three; five beams are asked for."""
    first, second = 2, 3
    builder = DFABuilder(classes=TokenClasses(np.array([0, 0, END, first, second]), 4), end=END)
    start, one, two = (builder.add() for _ in range(3))
    builder.link(start, {first: one})
    builder.link(one, {END: FINISHED, second: two})
    builder.link(two, {END: FINISHED})
    automaton = builder.automaton(np.full(5, -1), EOS)
    for early in (True, False, "never"):
        config = GenerationConfig(
            num_beams=5,
            num_return_sequences=5,
            early_stopping=early,
            forced_bos_token_id=None,
            max_new_tokens=60,
        )
        constraint = make_constraint(automaton, [start])
        out = generate_jax(random_tables(0, 5, 1), config, constraint=constraint)
        answers = [s[1 : n + 1].tolist() for s, n in zip(out.sequences, out.lengths, strict=True)]
        assert sorted(answers[:2]) == [[3, 2], [3, 4, 2]]
        assert all(answer in answers[:2] for answer in answers)
        assert (out.sequence_scores[:2] > -100).all()
        assert (out.sequence_scores[2:] < -1e8).all()


def test_other_automata_need_no_other_program():
    config = GenerationConfig(num_beams=2, max_new_tokens=20)
    tables = random_tables(0, VOCAB, BATCH)
    for seed in range(5):
        automaton, starts = random_automaton(seed, VOCAB, BATCH)
        generate_jax(tables, config, constraint=make_constraint(automaton, starts))
        if seed == 0:
            programs = _run._cache_size()
    assert _run._cache_size() == programs


@pytest.mark.parametrize("beams", [1, 3])
def test_a_free_program_holds_nothing_of_a_constraint(beams):
    """The 16-bit table is the only one of its type: without a constraint there is none."""
    automaton, starts = random_automaton(0, VOCAB, BATCH)
    tables = random_tables(0, VOCAB, BATCH)
    for constraint, expected in ((None, False), (make_constraint(automaton, starts), True)):
        config = GenerationConfig(num_beams=beams, max_new_tokens=30)
        plan, values = make_plan(config, facts(VOCAB), constraint)
        assert ("xi16>" in _run.lower(plan, tables, values, None).as_text()) == expected


def test_larger_tables_grow_by_powers_of_two():
    automaton, starts = random_automaton(0, VOCAB, BATCH)
    states, classes = automaton.next_state.shape
    for copies, shape in ((1, (1024, 256)), (50, (2048, 512))):
        table = np.tile(automaton.next_state, (copies, copies))
        large = dataclasses.replace(automaton, next_state=table, ordered=np.zeros(len(table)))
        constraint = make_constraint(large, starts)
        assert states * copies <= shape[0]
        assert classes * copies <= shape[1]
        assert constraint.next_state.shape == shape
        assert constraint.next_state[len(table) :].sum() == 0


@pytest.mark.parametrize(
    ("settings", "vocab", "message"),
    [
        ({"forced_bos_token_id": 5}, VOCAB, "forced_bos_token_id=5 is not what a constrained"),
        ({"forced_eos_token_id": 5}, VOCAB, "forced_eos_token_id=5 would break off"),
        ({"eos_token_id": 5}, VOCAB, r"eos_token_id=5, but constrained answers end with \[2\]"),
        ({}, VOCAB + 1, "the constraint is for a vocabulary of 17 tokens, the model has 18"),
    ],
)
def test_settings_that_contradict_a_constraint_are_named(settings, vocab, message):
    begin, words = 2, 3
    classes = np.array([begin, 0, END, *[words] * (VOCAB - 3)])
    builder = DFABuilder(classes=TokenClasses(classes, 4), end=END)
    start = builder.add()
    builder.link(start, {begin: start, END: FINISHED})
    constraint = make_constraint(builder.automaton(np.full(VOCAB, -1), EOS), [start])
    with pytest.raises(ValueError, match=message):
        make_plan(GenerationConfig(**settings), facts(vocab), constraint)


def test_a_constraint_has_a_start_for_each_row():
    automaton, starts = random_automaton(0, VOCAB, BATCH)
    constraint = make_constraint(automaton, starts)
    check_rows(constraint, BATCH)
    with pytest.raises(ValueError, match=r"starts \[3\] rows, but there are 4 prompts"):
        check_rows(constraint, 4)
