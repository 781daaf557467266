"""The truth scores 1, and what is wrong costs exactly what it should."""

import dataclasses

import pytest

from florence_jax.processing import TASKS, parse
from florence_jax.training.metrics.judge import Answered, metric_problems
from train.shapes import ShapesWorld
from train.shapes.judge import judge
from train.shapes.source import ShapesConfig

SIZE = (224, 224)
METRICS = {
    "<OCR>": "exact",
    "<OCR_WITH_REGION>": "F1@0.5",
    "<CAPTION>": "facts",
    "<DETAILED_CAPTION>": "facts",
    "<MORE_DETAILED_CAPTION>": "facts",
    "<OD>": "mAP@0.5",
    "<DENSE_REGION_CAPTION>": "F1@0.5",
    "<REGION_PROPOSAL>": "F1@0.5",
    "<CAPTION_TO_PHRASE_GROUNDING>": "accuracy@0.5",
    "<REFERRING_EXPRESSION_SEGMENTATION>": "mIoU",
    "<REGION_TO_SEGMENTATION>": "mIoU",
    "<OPEN_VOCABULARY_DETECTION>": "F1@0.5",
    "<REGION_TO_CATEGORY>": "exact",
    "<REGION_TO_DESCRIPTION>": "exact",
    "<REGION_TO_OCR>": "exact",
}


@pytest.fixture(scope="module")
def truth():
    world = ShapesWorld(split="held-out", seed=1)
    return [
        Answered(prefix=q.prefix, labels=q.suffix, answer=q.suffix, image_size=SIZE)
        for index in range(40)
        for q in world.questions(index)
    ]


def answered(prefix, labels, answer):
    row = Answered(prefix=prefix, labels=labels, answer=answer, image_size=(1000, 1000))
    (score,) = judge([row]).values()
    return score.value


def box(*bins):
    return "".join(f"<loc_{b}>" for b in bins)


def test_the_truth_scores_one_in_every_task(truth):
    scores = judge(truth)
    assert {task: score.metric for task, score in scores.items()} == METRICS
    assert list(scores) == list(TASKS)
    for score in scores.values():
        assert score.value == 1.0
        assert score.count == 40
        assert set(score.others.values()) <= {1.0}


def test_generated_text_may_have_its_special_tokens(truth):
    wrapped = [dataclasses.replace(row, answer=f"</s><s>{row.answer}</s><pad>") for row in truth]
    assert judge(wrapped) == judge(truth)


def test_a_pipelines_results_are_judged_as_text_is(truth):
    results = []
    for row in truth:
        (task,) = [token for token in TASKS if row.prefix.startswith(token)]
        results.append(dataclasses.replace(row, answer=parse(row.answer, task, row.image_size)))
    assert judge(results) == judge(truth)


def test_no_answer_scores_nothing(truth):
    scores = judge([dataclasses.replace(row, answer="") for row in truth])
    assert {score.value for score in scores.values()} == {0.0}


def test_other_scenes_answers_score_little(truth):
    tasks = len(TASKS)
    shifted = [row.answer for row in (*truth[tasks:], *truth[:tasks])]
    scores = judge(
        [dataclasses.replace(row, answer=a) for row, a in zip(truth, shifted, strict=True)]
    )
    for task, score in scores.items():
        chance = 0.45 if METRICS[task] in ("exact", "facts") else 0.25
        assert score.value < chance, task


def test_moved_boxes_are_wrong_from_half_an_overlap_on():
    truth = f"a{box(0, 0, 400, 400)}"
    # 400 x 400 of 400 x 790, then of 400 x 810.
    assert answered("<OD>", truth, f"a{box(0, 0, 400, 790)}") == 1.0
    assert answered("<OD>", truth, f"a{box(0, 0, 400, 810)}") == 0.0


def test_detection_is_the_mean_over_classes():
    truth = f"a{box(0, 0, 200, 200)}b{box(300, 300, 500, 500)}"
    assert answered("<OD>", truth, f"a{box(0, 0, 200, 200)}") == 0.5
    # A class that the truth does not have costs nothing there; F1 counts it.
    more = f"{truth}c{box(700, 700, 900, 900)}"
    (score,) = judge(
        [Answered(prefix="<OD>", labels=truth, answer=more, image_size=(1000, 1000))]
    ).values()
    assert score.value == 1.0
    assert score.others["F1@0.5"] == pytest.approx(2 * 2 / (2 + 3))


def test_confidences_rank_boxes():
    truth = f"a{box(0, 0, 200, 200)}"
    boxes = [[0.5, 0.5, 200.5, 200.5], [700, 700, 900, 900]]
    for scores, expected in (([0.9, 0.1], 1.0), ([0.1, 0.9], 0.5)):
        result = {"<OD>": {"bboxes": boxes, "labels": ["a", "a"], "scores": scores}}
        assert answered("<OD>", truth, result) == expected


@pytest.mark.parametrize("task", ["<DENSE_REGION_CAPTION>", "<OPEN_VOCABULARY_DETECTION>"])
def test_labelled_boxes_need_their_exact_label(task):
    truth = f"red circle{box(0, 0, 200, 200)}blue star{box(300, 300, 500, 500)}"
    wrong = truth.replace("blue", "red")
    prefix = task if TASKS[task].takes == "nothing" else f"{task}red circle <and> blue star"
    assert answered(prefix, truth, wrong) == pytest.approx(2 * 1 / (2 + 2))
    assert answered(prefix, truth, truth + truth) == pytest.approx(2 * 2 / (2 + 4))


def test_proposals_need_no_label_and_pay_for_what_is_too_much():
    truth = box(0, 0, 200, 200) + box(300, 300, 500, 500)
    extra = truth + box(700, 700, 900, 900) * 2
    assert answered("<REGION_PROPOSAL>", truth, extra) == pytest.approx(2 * 2 / (2 + 4))


def test_reading_with_regions_needs_text_and_place():
    quad, elsewhere = box(0, 0, 200, 0, 200, 50, 0, 50), box(500, 0, 700, 0, 700, 50, 500, 50)
    truth = f"CAT{quad}DOG{elsewhere}"
    task = "<OCR_WITH_REGION>"
    assert answered(task, truth, f"CAP{quad}DOG{elsewhere}") == 0.5
    assert answered(task, truth, f"CAT{elsewhere}DOG{quad}") == 0.0
    half = box(0, 0, 101, 0, 101, 50, 0, 50)
    assert answered(task, truth, f"CAT{half}DOG{elsewhere}") == 1.0
    less = box(0, 0, 90, 0, 90, 50, 0, 50)
    assert answered(task, truth, f"CAT{less}DOG{elsewhere}") == 0.5


def test_a_phrase_is_grounded_when_all_its_boxes_are_and_no_other():
    one, two, other = box(0, 0, 200, 200), box(300, 300, 500, 500), box(700, 700, 900, 900)
    truth = f"Two red circles{one}{two}a blue star{other}"
    prefix = "<CAPTION_TO_PHRASE_GROUNDING>Two red circles and a blue star."
    assert answered(prefix, truth, f"a blue star{other}Two red circles{two}{one}") == 1.0
    assert answered(prefix, truth, f"Two red circles{one}a blue star{other}") == 0.5
    assert answered(prefix, truth, f"Two red circles{one}{two}{other}a blue star{other}") == 0.5
    assert answered(prefix, truth, f"Two red circles{one}{two}a green star{other}") == 0.5


def test_segmentation_is_the_mean_overlap():
    square = box(0, 0, 400, 0, 400, 400, 0, 400)
    half = box(0, 0, 200, 0, 200, 400, 0, 400)
    prefix = f"<REGION_TO_SEGMENTATION>{box(0, 0, 400, 400)}"
    assert answered(prefix, square, half) == pytest.approx(0.5, abs=0.01)
    rows = [
        Answered(prefix=prefix, labels=square, answer=answer, image_size=(1000, 1000))
        for answer in (square, half, "")
    ]
    assert judge(rows)["<REGION_TO_SEGMENTATION>"].value == pytest.approx(0.5, abs=0.01)


def test_a_wrong_property_is_one_wrong_fact(truth):
    """Every description with a size changed loses that fact, and no other."""
    wrong, told = [], 0
    for row in truth:
        if row.prefix == "<DETAILED_CAPTION>":
            for size, other in (("small", "large"), ("medium", "small"), ("large", "medium")):
                if f" {size} " in row.labels:
                    changed = row.labels.replace(f" {size} ", f" {other} ", 1)
                    wrong.append(dataclasses.replace(row, answer=changed))
                    # One for each thing, and the background.
                    told += row.labels.count(", ") + 1 + row.labels.count(" and ") + 1
                    break
    assert len(wrong) == 40
    (score,) = judge(wrong).values()
    assert score.value == pytest.approx(1 - len(wrong) / told)
    assert score.others == {"captions with every fact": 0.0}


def test_unreadable_captions_cost_precision():
    told = "A red circle and a blue star."
    assert answered("<CAPTION>", told, "A red circle, a blue star and a big dog.") == pytest.approx(
        2 * 2 / (2 + 3)
    )
    assert answered("<CAPTION>", told, "A blue star and a red circle.") == 1.0


def test_exact_answers_are_equal_to_the_letter():
    assert answered("<OCR>", "CAT\nDOG", "CAT\nDOG ") == 1.0
    assert answered("<OCR>", "CAT\nDOG", "DOG\nCAT") == 0.0
    region = box(1, 2, 300, 400)
    prefix = f"<REGION_TO_CATEGORY>{region}"
    assert answered(prefix, f"circle{region}", f"circle{box(9, 9, 99, 99)}") == 1.0
    assert answered(prefix, f"circle{region}", f"circles{region}") == 0.0


def test_a_task_of_ones_own_is_refused():
    with pytest.raises(ValueError, match="'<VQA>How many\\?' asks for none of"):
        answered("<VQA>How many?", "two", "two")


def test_a_run_measures_the_facts_of_the_world_s_captions():
    text = "A red circle and a blue square."
    rows = [
        Answered(prefix=prefix, labels=text, answer=text, image_size=SIZE)
        for prefix in ("<CAPTION>", "<OD>")
    ]
    config = ShapesConfig(scenes=1)
    ((_, source, _),) = config.open(seed=0)
    expected = {f"<CAPTION> {metric}": 1.0 for metric in config.metrics}
    assert source.scores(rows) == expected
    # Each of them may decide which checkpoint is the best.
    for name in expected:
        assert list(metric_problems(name, 1, config.metrics)) == []
        assert list(metric_problems(name, 1)) != []
