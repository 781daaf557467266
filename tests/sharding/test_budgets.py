"""What devices say to each other, by class: a collective that creeps in is found here."""

import math

import pytest

from florence_jax.checkpoint.param_tree import param_shapes
from tests.sharding.equality import SIZES
from tests.sharding.subprocesses import run_lines


@pytest.fixture(scope="module")
def programs(compiled_on_disk):
    found = run_lines("budgets", cache=compiled_on_disk)
    return {(line["program"], line["case"]): line["collectives"] for line in found}


def parameters():
    return sum(math.prod(shape) for shape in param_shapes(SIZES["small"]).values())


def test_a_data_parallel_step_sums_gradients_once_and_gathers_nothing(programs):
    found = programs["step", "data=8:dp"]
    assert {kind for kind, *_ in found} == {"all-reduce"}
    # Each gradient once, and a handful of scalars.
    assert sum(size for _, size, *_ in found) < 4 * parameters() * 1.02


def test_data_parallel_generation_waits_for_nothing_but_the_end(programs):
    assert [found[:3] for found in programs["generate", "data=8:dp"]] == [["all-reduce", 1, True]]


def test_generation_under_fsdp_gathers_parameters_before_the_loop(programs):
    found = programs["generate", "fsdp=8:fsdp"]
    inside = [one for one in found if one[2]]
    assert [one[:2] for one in inside] == [["all-reduce", 1]]
    outside = [one for one in found if not one[2]]
    assert {kind for kind, *_ in outside} == {"all-gather"}
    assert sum(size for _, size, *_ in outside) < 4 * parameters()


def test_tensor_parallel_generation_moves_sums_and_maxima_but_no_logits(programs):
    inside = [one for one in programs["generate", "data=4,tensor=2:tp"] if one[2]]
    sizes, rows = SIZES["small"].text, 2 * 3
    # Two rows and three beams a device. One sum for an embedding and for each of a layer's three
    # branches; all else is a word's worth, or the 64ths of the vocabulary that hold the best.
    assert [kind for kind, *_ in inside].count("all-reduce") <= 4 + 5
    assert max(size for _, size, *_ in inside) <= 4 * rows * max(sizes.d_model, 128)
