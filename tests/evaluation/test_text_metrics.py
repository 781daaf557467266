"""Answers as text: ANLS and VQA accuracy with the challenges' own rules."""

import json

import numpy as np
import pytest

from florence_jax.evaluation.metrics import (
    anls,
    edit_distance,
    exact_match,
    normalized_answer,
    similarity,
    textvqa_accuracy,
    vizwiz_accuracy,
    vqa_accuracy,
)
from florence_jax.evaluation.registry import BENCHMARKS
from tests.shared_data import needs_shared, shared_path


def slow_distance(one, other):
    """Wagner and Fischer's table, cell by cell."""
    table = np.add.outer(np.arange(len(one) + 1), np.arange(len(other) + 1))
    for i, a in enumerate(one, 1):
        for j, b in enumerate(other, 1):
            table[i, j] = min(
                table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a != b)
            )
    return table[-1, -1]


def test_the_edit_distance_is_levenshteins():
    draw = np.random.default_rng(0)
    for _ in range(200):
        one, other = ("".join(draw.choice(list("abü"), draw.integers(0, 9))) for _ in range(2))
        assert edit_distance(one, other) == slow_distance(one, other)
    assert edit_distance("kitten", "sitting") == 3


@pytest.mark.parametrize(
    ("truth", "answer", "value"),
    [("Paris", "paris ", 1.0), ("abcd", "abcx", 0.75), ("abcd", "wxyz", 0.0), ("", "", 1.0)],
)
def test_anls_counts_as_docvqa_does(truth, answer, value):
    assert anls([truth], answer) == value


def test_the_best_of_several_truths_counts():
    assert anls(["no", "1984"], "1985") == 0.75
    assert similarity("ab", "abcd") == 0.5


def shared_json(name):
    return json.loads(shared_path("metrics", "anls", name).read_text())


@needs_shared
def test_anls_of_the_documented_submission():
    answers = {row["questionId"]: row["answer"] for row in shared_json("submission.json")}
    expected = shared_json("expected.json")
    scores = {
        row["questionId"]: anls(row["answers"], answers[row["questionId"]])
        for row in shared_json("gold_label.json")["data"]
    }
    assert sum(scores.values()) / len(scores) == pytest.approx(17 / 45, abs=1e-9)
    assert sum(scores.values()) / len(scores) == pytest.approx(
        expected["dataset_score"]["expected"], rel=expected["dataset_score"]["rel_tol"]
    )
    for number, score in expected["dataset_score"]["per_sample"].items():
        assert scores[int(number)] == pytest.approx(score, abs=0.005)
    for answer, score in expected["pairs"]["cases"]:
        assert anls(expected["pairs"]["gold"], answer) == pytest.approx(score, abs=0.005)


def test_anls_at_the_threshold():
    assert anls(["ab"], "ax") == 0.5  # DocVQA's server zeroes what is below a half
    assert anls(["abc"], "axx") == 0.0
    assert anls(["abc"], "abx") == pytest.approx(2 / 3)
    assert anls(["abcd"], "a", threshold=1.0) == 0.25
    assert anls([""], "  ") == 1.0
    with pytest.raises(ValueError, match="has no truth"):
        anls([], "a")


def test_exact_match_is_to_the_letter():
    assert exact_match(["Paris", "London"], "London") == 1.0
    assert exact_match(["Paris"], "paris") == 0.0


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The two dogs!", "2 dogs"),
        ("A man, a plan", "man plan"),
        ("isnt", "isn't"),
        ("don't", "don't"),
        ("none", "0"),
        ("1,000", "1000"),
        ("yes/no", "yes no"),
        ("T-shirt", "t shirt"),
        ("t - shirt", "t shirt"),
        ("U.S.", "us"),
        ("3.5", "3.5"),
        ("5. o'clock", "5 o'clock"),
        ("5.o", "5o"),
        ("what? (really)", "what really"),
        ("x_y@z.com", "x y zcom"),
        ("somebody'd", "somebodyd"),
    ],
)
def test_answers_are_normalised_as_the_challenge_does(text, normal):
    assert normalized_answer(text) == normal


def test_vqa_accuracy_leaves_out_each_of_the_people():
    people = ["red"] * 3 + ["blue"] * 7
    # Without one of the three who said so, two of three are left: (3 * 2/3 + 7 * 1) / 10.
    assert vqa_accuracy(people, "Red") == pytest.approx(0.9)
    assert vqa_accuracy(people, "blue") == 1.0
    assert vqa_accuracy(people, "green") == 0.0
    assert vqa_accuracy(["red"] + ["blue"] * 9, "a red.") == pytest.approx(9 / 30)
    assert vqa_accuracy(["red"] * 2 + ["blue"] * 8, "red") == pytest.approx((2 / 3 + 16 / 3) / 10)


def test_vqa_accuracy_normalises_only_where_people_differ():
    assert vqa_accuracy(["the dog"] * 10, "dog") == 0.0
    # To the letter, as vqaEval compares where people agree.
    assert vqa_accuracy(["the dog"] * 10, "the dog\n") == 1.0
    assert vqa_accuracy(["the dog"] * 10, "The Dog") == 0.0
    assert vqa_accuracy(["Yes"] * 10, "yes") == 0.0
    assert vqa_accuracy(["Yes"] * 9 + ["no"], "yes") == 1.0
    assert vqa_accuracy(["the dog"] * 9 + ["cat"], "dog") == 1.0
    with pytest.raises(ValueError, match="no truths"):
        vqa_accuracy([], "dog")


@pytest.mark.parametrize(
    ("truth", "answer", "value"),
    [
        ("Yes", "yes", 1.0),
        ("the dog", "dog?", 1.0),
        ("1,000", "1000", 1.0),
        ("10, 20", "10 20", 1.0),
        ("joe's", "joe 's", 1.0),
        ("two", "2", 1.0),
        ("t-shirt", "tshirt", 0.0),
    ],
)
def test_textvqa_always_normalises(truth, answer, value):
    assert textvqa_accuracy([truth] * 10, answer) == value
    assert textvqa_accuracy([truth] * 3 + ["x"] * 7, answer) == pytest.approx(0.9 * value)


def test_vizwiz_normalises_the_models_answer_alone():
    assert vizwiz_accuracy(["yes"] * 10, "Yes.") == 1.0
    assert vizwiz_accuracy(["Yes"] * 10, "Yes") == 0.0
    assert vizwiz_accuracy(["the dog"] * 10, "the dog") == 0.0
    assert vizwiz_accuracy(["dog"] * 2 + ["cat"] * 8, "a dog!") == pytest.approx(
        (2 / 3 + 16 / 3) / 10
    )


def test_each_data_set_has_its_own_accuracy():
    rows = [{"truth": ["Yes"] * 10, "answers": [{"result": {"<VQA>": "yes"}}]}]
    values = {
        name: BENCHMARKS[name].score(rows, {}).value for name in ("vqav2", "textvqa", "vizwiz")
    }
    assert values == {"vqav2": 0.0, "textvqa": 100.0, "vizwiz": 0.0}
