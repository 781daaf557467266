"""Comparing and timing in turns, with workers that only write down what they are asked."""

import numpy as np
import pytest

from tests.benchmarks.rivals.processes import WorkerError
from tests.benchmarks.rivals.rounds import Redirected, check, time_in_turns
from tests.benchmarks.rivals.samples import Sample

TOKENS = np.array([[2, 0, 7, 8, 2]])


class Scripted:
    """Answers with what it is given: an array, None for a call it has not, or an error."""

    def __init__(self, name="", log=None, likelihood=0.0, **results):
        self.name, self.log, self.likelihood = name, [] if log is None else log, likelihood
        self.results = results

    def ask(self, **request):
        self.log.append((self.name, request["do"], request["call"]))
        result = self.results.get(request["call"])
        if isinstance(result, Exception):
            raise result
        if request["do"] == "judge":
            tokens = np.load(request["tokens"])
            return {"log_likelihood": [0.0 if (tokens == TOKENS).all() else self.likelihood]}
        if result is None:
            return {"not_offered": True}
        if request["do"] == "check":
            np.save(request["output"], result)
        return {"wall": 1.0, "cpu": 2.0, "others": 0.0}


def run_check(workers, call="beam", dtype="float32", compared_as=None):
    return check(workers, call, 1, dtype, compared_as or {}, lambda *_: None)


def test_only_equal_tokens_may_be_timed():
    wrong = TOKENS + (TOKENS == 8)
    found = run_check(
        {
            "equal": Scripted(beam=TOKENS),
            "wrong": Scripted(beam=wrong),
            "jax": Scripted(beam=TOKENS),
            "vision only": Scripted(vision=TOKENS),
            "broken": Scripted(beam=WorkerError("out of memory")),
        }
    )
    assert found == {
        "jax": None,
        "equal": None,
        "wrong": "MISMATCH, not timed: 1 of 1 answers differ, the first from token 3 on",
        "vision only": "",
        "broken": "failed: out of memory",
    }


@pytest.mark.parametrize(("likelihood", "passes"), [(-0.1, True), (-5.0, False)])
def test_in_half_precision_our_model_judges_answers_that_differ(likelihood, passes):
    workers = {
        "jax": Scripted(beam=TOKENS, likelihood=likelihood),
        "other": Scripted(beam=TOKENS + (TOKENS == 8)),
    }
    assert (run_check(workers, dtype="bfloat16")["other"] is None) == passes
    assert "MISMATCH" in run_check(workers, dtype="float32")["other"]


def test_a_call_may_be_compared_as_another():
    workers = {
        "jax": Scripted(beam=TOKENS, free=TOKENS),
        "other": Scripted(beam=TOKENS + 1, free=TOKENS),
    }
    assert run_check(workers, compared_as={"other": {"beam": "free"}})["other"] is None
    assert run_check(workers)["other"] is not None


def test_nothing_is_timed_against_a_failure_of_ours():
    workers = {"jax": Scripted(beam=WorkerError("why")), "other": Scripted(beam=TOKENS)}
    assert run_check(workers) == {
        "jax": "failed: why",
        "other": "not compared: our own call failed",
    }


def test_turns_alternate_and_the_order_is_reversed():
    log = []
    workers = {name: Scripted(name, log, long=TOKENS, short=TOKENS) for name in "ab"}
    samples, failures = time_in_turns(workers, ("long", "short"), 1, 3, lambda *_: None)
    forwards = [("a", "long"), ("a", "short"), ("b", "long"), ("b", "short")]
    backwards = forwards[2:] + forwards[:2]
    assert [(name, call) for name, _, call in log] == forwards + backwards + forwards
    assert not failures
    assert samples["b"]["short"] == [Sample(wall=1.0, cpu=2.0, others=0.0)] * 3


def test_an_engine_that_fails_is_left_out_of_later_rounds():
    log = []
    workers = {"a": Scripted("a", log, long=WorkerError("died")), "b": Scripted("b", log, long=1)}
    samples, failures = time_in_turns(workers, ("long",), 1, 3, lambda *_: None)
    assert failures == {"a": "failed: died"}
    assert [name for name, _, _ in log].count("a") == 1
    assert len(samples["b"]["long"]) == 3


def test_one_worker_can_be_asked_in_two_ways():
    worker = Scripted(exact=TOKENS, long=TOKENS)
    found = check(
        {"jax": Redirected(worker, "exact"), "long": Redirected(worker, "long")},
        "limit",
        1,
        "float32",
        {},
        lambda *_: None,
    )
    assert found == {"jax": None, "long": None}
    assert [call for _, _, call in worker.log] == ["exact", "long"]
