"""Eight CPU devices against one: the same logits, losses, gradients, parameters, tokens.

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
# In float64, which rounds by 1e-16: whatever a layout computes otherwise shows, in any leaf.
EXACT = 1e-12
COMPARED = {"logits", "loss", "gradients", "parameters", "average"}


def check_training(size, cases, directory, cache):
    """In float64, and in float32 as it is used."""
    truth = directory / "truth.npz"
    exact = run_lines("equality", size, "float64", truth, *cases, cache=cache)
    assert [line.pop("case") for line in exact] == list(cases)
    for line in exact:
        assert line.keys() == COMPARED
        assert max(line.values()) < EXACT, line
    found = run_lines("equality", size, "float32", truth, *cases, cache=cache)
    assert [line.pop("case") for line in found] == list(cases)
    for line in found:
        # No leaf of the gradient is much further from the truth than the worst of one device.
        assert line.pop("leaves") < 1.6 * line.pop("leaves_alone"), line
        assert line.keys() == COMPARED
        assert max(line.values()) < TOLERANCE, line


def check_tokens(found, cases, kinds):
    assert {line["case"] for line in found} == set(cases)
    assert len(found) == len(cases) * len(kinds)
    for line in found:
        assert line["same"], line
        assert line["parts"] == line["batch_parts"], line
        assert line["scores"] < 1e-5, line
    # Rows that end early beside rows that do not.
    assert any(len(line["lengths"]) > 1 for line in found)


def test_training_on_two_by_two_by_two_devices(compiled_on_disk, tmp_path):
    check_training("small", [CUBE], tmp_path, compiled_on_disk)


def test_answers_of_two_by_two_by_two_devices(compiled_on_disk):
    found = run_lines("tokens", "small", "greedy,beams", CUBE, cache=compiled_on_disk)
    check_tokens(found, [CUBE], ["greedy", "beams"])


@pytest.mark.slow
@pytest.mark.parametrize(("size", "cases"), [("small", CASES + ODD_CASES), ("tiny", CASES)])
def test_training_under_every_layout(size, cases, compiled_on_disk, tmp_path):
    check_training(size, cases, tmp_path, compiled_on_disk)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "cases"), [("small", CASES + ODD_CASES), ("tiny", CASES)])
def test_answers_under_every_layout(size, cases, compiled_on_disk):
    kinds = ("greedy", "beams", "sampling", "constrained")
    found = run_lines("tokens", size, ",".join(kinds), *cases, cache=compiled_on_disk)
    check_tokens(found, cases, kinds)


def test_blocks_of_words_under_every_division_of_rows_and_words(compiled_on_disk):
    meshes = ("data=2,fsdp=2,tensor=2", "fsdp=8", "tensor=8", "dcn_data=2,data=2,tensor=2")
    found = run_lines("cross_entropy", *meshes, cache=compiled_on_disk)
    assert [line["mesh"] for line in found] == list(meshes)
    for line in found:
        assert line["distance"] < TOLERANCE, line
