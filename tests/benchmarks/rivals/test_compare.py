"""What counts as the same."""

import numpy as np
import pytest

from tests.benchmarks.rivals.compare import difference, likelihood_difference


@pytest.fixture
def features():
    return np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)


def test_roundings_pass_and_a_thousandth_does_not(features):
    noise = np.random.default_rng(1).standard_normal(features.shape).astype(np.float32)
    assert difference(features, features + 1e-6 * noise, "float32") is None
    found = difference(features, features * np.float32(1.001), "float32")
    assert found == "its result is 1.0e-03 from ours (allowed are 1e-04)"
    assert difference(features, features * np.float32(1.001), "bfloat16") is None


def test_shapes_and_numbers_that_are_none(features):
    assert "shape (2, 4, 8), ours (2, 5, 8)" in str(
        difference(features, features[:, :4], "float32")
    )
    broken = features.copy()
    broken[0, 0, 0] = np.nan
    assert difference(features, broken, "bfloat16") == "its result is not finite"


def test_one_wrong_token_is_enough():
    tokens = np.arange(12).reshape(2, 6)
    wrong = tokens.copy()
    wrong[1, 4] = 0
    assert difference(tokens, tokens.astype(np.int32), "float32") is None
    found = difference(tokens, wrong, "float32")
    assert found == "1 of 2 answers differ, the first from token 4 on"


def test_an_answer_may_be_likelier_but_not_much_less_likely():
    ours = np.array([-1.0, -2.0])
    assert likelihood_difference(ours, np.array([-1.2, -0.5])) is None
    found = likelihood_difference(ours, np.array([-1.0, -6.5]))
    assert found == "an answer is 4.50 nats a token less likely than ours"
