"""The clock is the test's own: seconds are exact."""

import numpy as np
import pytest

from florence_jax.training.metrics import goodput
from florence_jax.training.metrics.goodput import Goodput


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(goodput.time, "perf_counter", lambda: now[0])
    return now


def test_every_second_is_a_step_or_has_a_cause(clock):
    run = Goodput(starting=10.0)
    clock[0] += 90.0
    run.lose(5.0, "compilation")
    run.lose(3.0, "data")
    run.lose(2.0, "checkpoint")
    run.lose(15.0, "evaluation")
    assert run.seconds == 100.0
    assert run.productive == 65.0
    assert run.share == pytest.approx(0.65)
    figures = run.figures()
    lost = sum(
        value
        for name, value in figures.items()
        if name in [f"seconds_{cause}" for cause in run.lost]
    )
    assert lost + run.productive == figures["seconds"] == 100.0
    assert str(run).startswith("goodput 65.0% of 100 s (evaluation 15.0%, start 10.0%, compil")


def test_the_deviation_of_a_step_is_that_of_all_steps(clock):
    run, seconds, counts = Goodput(), [1.0, 1.5, 0.5], [10, 4, 1]
    for one, count in zip(seconds, counts, strict=True):
        run.steps(one, count)
    run.steps(9.0, 0)
    steps = np.repeat(seconds, counts)
    assert run.step_seconds == pytest.approx((steps.mean(), steps.std()))
    assert run.figures()["seconds_per_step_deviation"] == pytest.approx(steps.std())


def test_nothing_has_happened_yet(clock):
    run = Goodput()
    assert run.step_seconds == (0.0, 0.0)
    assert run.share == 0.0
    assert "a step 0 s +- 0%" in str(run)
