"""A fault planted on our side is located to its layer, and without one nothing is marked."""

import numpy as np
import pytest

from florence_jax.model import Model
from tests.convert.planted import (
    WrongEpsilon,
    WrongStep,
    changed,
    kernels,
    located,
    model_with,
    rows_with,
)

pytest.importorskip("torch", reason="needs the extra 'torch'")


@pytest.mark.parametrize(
    # A bound of each: float16 is compared as bfloat16 is.
    "dtype",
    ["float32", "bfloat16", pytest.param("float16", marks=pytest.mark.slow)],
)
def test_no_stage_is_marked_without_a_fault(dtype):
    rows = rows_with(model=model_with(Model, dtype=dtype), dtype=dtype)
    assert located(rows) is None
    assert len(rows) == 10 + 1 + 3 + 3 + 1


def test_no_answer_is_marked_without_a_fault():
    rows = rows_with(new_tokens=12)
    assert located(rows) is None
    answers = {row.stage: row for row in rows[-3:]}
    assert list(answers) == ["greedy tokens", "beam-3 tokens", "beam-3 scores"]
    assert answers["greedy tokens"].top1 == answers["beam-3 tokens"].top1 == 1.0


def test_one_weight():
    """One element of one matrix of every layer, off by a tenth of the matrix' spread."""
    rng = np.random.default_rng(0)

    def disturb(array):
        array[tuple(rng.integers(array.shape))] += 0.1 * array.std()
        return array

    missed = {}
    for stage, paths in kernels().items():
        path = str(rng.choice(paths))
        found = located(rows_with(changed(path, disturb)))
        if found != stage:
            missed[path] = found
    assert not missed
    assert len(kernels()) == 8 + 1 + 2 + 2


def test_one_transposed_matrix():
    rng = np.random.default_rng(1)
    missed = {}
    for stage, paths in kernels(square=True).items():
        path = str(rng.choice(paths))
        found = located(rows_with(changed(path, np.transpose)))
        if found != stage:
            missed[path] = found
    assert not missed


@pytest.mark.parametrize(
    ("norm", "stage"),
    [
        ("projector/norm", "projector"),
        # Each norm compiles a model; `test_one_weight` has a fault in every layer.
        pytest.param("encoder/layers/1/final_norm", "encoder/layer1", marks=pytest.mark.slow),
        ("decoder/layers/0/cross_attn_norm", "decoder/layer0"),
    ],
)
def test_one_epsilon(norm, stage):
    """Flax's default, 1e-6, in the place of torch's 1e-5."""
    assert located(rows_with(model=model_with(WrongEpsilon, norm=norm, epsilon=1e-6))) == stage


def test_a_wrong_decoding_step_is_seen_in_the_answers():
    """Every stage of the forward pass is right; only generation, token by token, is not."""
    assert located(rows_with(model=model_with(WrongStep), new_tokens=12)) == "greedy tokens"
