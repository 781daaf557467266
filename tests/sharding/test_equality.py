"""Eight CPU devices against one, float32: the same logits, losses, gradients, parameters, tokens.

The batch of five rows is of no mesh a multiple, and the vocabulary of 61 (tiny: 1285) is divided by
none: both are filled up.
"""

import pytest

from tests.sharding.subprocesses import run_lines

CUBE = "data=2,fsdp=2,tensor=2:fsdp_tp"
CASES = (
    "data=8:dp",
    "fsdp=8:fsdp",
    "data=4,tensor=2:tp",
    "fsdp=4,tensor=2:fsdp_tp",
    CUBE,
)
# Two heads and two groups in eight parts, and two slices.
ODD_CASES = ("tensor=8:tp", "dcn_data=2,data=2,fsdp=2:fsdp")
# Float32 itself rounds by 6e-8; sums over devices are taken in another order.
TOLERANCE = 1e-6


def check_training(found, cases):
    assert [line.pop("case") for line in found] == list(cases)
    for line in found:
        assert line.keys() == {"logits", "loss", "gradients", "parameters", "average"}
        assert max(line.values()) < TOLERANCE, line


def check_tokens(found, cases, kinds):
    assert {line["case"] for line in found} == set(cases)
    assert len(found) == len(cases) * len(kinds)
    for line in found:
        assert line["same"], line
        assert line["scores"] < 1e-5, line
    # Rows that end early beside rows that do not.
    assert any(len(line["lengths"]) > 1 for line in found)


def test_training_on_two_by_two_by_two_devices(compiled_on_disk):
    check_training(run_lines("equality", "small", CUBE, cache=compiled_on_disk), [CUBE])


def test_answers_of_two_by_two_by_two_devices(compiled_on_disk):
    found = run_lines("tokens", "small", "greedy,beams", CUBE, cache=compiled_on_disk)
    check_tokens(found, [CUBE], ["greedy", "beams"])


@pytest.mark.slow
@pytest.mark.parametrize(("size", "cases"), [("small", CASES + ODD_CASES), ("tiny", CASES)])
def test_training_under_every_layout(size, cases, compiled_on_disk):
    check_training(run_lines("equality", size, *cases, cache=compiled_on_disk), cases)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "cases"), [("small", CASES + ODD_CASES), ("tiny", CASES)])
def test_answers_under_every_layout(size, cases, compiled_on_disk):
    kinds = ("greedy", "beams", "sampling", "constrained")
    found = run_lines("tokens", size, ",".join(kinds), *cases, cache=compiled_on_disk)
    check_tokens(found, cases, kinds)
