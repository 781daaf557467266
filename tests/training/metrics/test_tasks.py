import pytest

from florence_jax.training.metrics.judge import Answered, metric_problems, task_scores


def answered(prefix, labels, answer):
    return Answered(prefix=prefix, labels=labels, answer=answer, image_size=(100, 100))


def test_each_task_has_its_own_figures():
    box, other = "<loc_0><loc_0><loc_500><loc_500>", "<loc_500><loc_500><loc_999><loc_999>"
    rows = [
        answered("<OD>", f"car{box}", f"car{box}"),
        answered("<OD>", f"car{box}", f"car{other}"),
        answered("<VQA>what?", "a red car", "a red cat"),
        answered(f"<REGION_TO_CATEGORY>{box}", f"car{box}", f"car{other}"),
        answered("<CAPTION>", "A dog.", "A dog."),
    ]
    scores = task_scores(rows)
    assert scores["<OD> F1@0.5"] == 0.5
    assert 0.4 < scores["<OD> mAP@0.5"] < 0.6
    assert scores["<VQA> exact"] == 0.0
    assert scores["<VQA> similarity"] == pytest.approx(8 / 9)
    assert scores["<VQA> ANLS"] == pytest.approx(8 / 9)
    assert scores["<REGION_TO_CATEGORY> exact"] == 1.0
    assert scores["<CAPTION> exact"] == 1.0
    assert "<CAPTION> facts" not in scores
    # Each of them may decide which checkpoint is the best.
    assert [list(metric_problems(name, 1)) for name in scores] == [[]] * len(scores)
    assert list(metric_problems("<OD> F1@0.5", 0)) == [
        "evaluation.metric '<OD> F1@0.5' is measured in answers, and evaluation.answers=0 "
        "generates none"
    ]
