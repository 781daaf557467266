"""Which evaluation is the best one."""

import math
from types import SimpleNamespace

from florence_jax.training.checkpointing.resume import CheckpointPolicy


def keeping(metric, best=None):
    evaluation = SimpleNamespace(metric=metric)
    training = SimpleNamespace(config=SimpleNamespace(evaluation=evaluation))
    checkpoints = SimpleNamespace(best=best and best["step"], wait=lambda: None)
    return CheckpointPolicy(training, checkpoints, {"best": best} if best else {})


def test_the_lowest_loss_or_the_highest_of_another_metric():
    for metric, values in (
        ("loss", (2.0, 1.0, 1.5)),
        ("nll", (2.0, 1.0, 1.5)),
        ("<OD> F1@0.5", (0.1, 0.3, 0.2)),
    ):
        found = keeping(metric)
        bests = []
        for step, value in enumerate(values):
            bests.append(found.is_best(step, {metric: value}))
            found._checkpoints.best = found.best["step"]
        assert bests == [True, True, False]


def test_the_best_of_another_metric_says_nothing():
    before = {"step": 4, "metric": "loss", "value": 2.5}
    found = keeping("<OD> F1@0.5", before)
    assert found.is_best(8, {"<OD> F1@0.5": 0.8})
    assert found.best == {"step": 8, "metric": "<OD> F1@0.5", "value": 0.8}


def test_what_is_not_a_number_is_no_best():
    found = keeping("loss")
    assert not found.is_best(1, {"loss": math.nan})
    assert found.is_best(2, {"loss": 3.0})
    assert not found.is_best(2, {"loss": math.nan})
