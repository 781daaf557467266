import numpy as np
import pytest

from train.metrics import anls, edit_distance, similarity, task_scores
from train.shapes.judge import Answered


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


def answered(prefix, suffix, answer):
    return Answered(prefix=prefix, suffix=suffix, answer=answer, image_size=(100, 100))


def test_each_task_has_its_own_figures():
    box, other = "<loc_0><loc_0><loc_500><loc_500>", "<loc_500><loc_500><loc_999><loc_999>"
    rows = [
        answered("<OD>", f"car{box}", f"car{box}"),
        answered("<OD>", f"car{box}", f"car{other}"),
        answered("<VQA>what?", "a red car", "a red cat"),
        answered(f"<REGION_TO_CATEGORY>{box}", f"car{box}", f"car{other}"),
        answered("<CAPTION>", "A dog.", "A dog."),
    ]
    scores = task_scores(rows, world=False)
    assert scores["<OD> F1@0.5"] == 0.5
    assert 0.4 < scores["<OD> mAP@0.5"] < 0.6
    assert scores["<VQA> exact"] == 0.0
    assert scores["<VQA> similarity"] == pytest.approx(8 / 9)
    assert scores["<VQA> ANLS"] == pytest.approx(8 / 9)
    assert scores["<REGION_TO_CATEGORY> exact"] == 1.0
    assert scores["<CAPTION> exact"] == 1.0
    assert "<CAPTION> facts" not in scores


def test_captions_of_the_world_are_judged_by_their_facts():
    text = "A red circle and a blue square."
    scores = task_scores([answered("<CAPTION>", text, text)], world=True)
    assert scores["<CAPTION> facts"] == scores["<CAPTION> exact"] == 1.0
