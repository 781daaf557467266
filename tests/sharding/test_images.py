"""Eight CPU devices train image networks as one does: losses, evaluations, exported weights."""

import pytest

from tests.sharding.subprocesses import run_lines

# Sums of float32 over devices are taken in another order, and a batch norm over a few pixels
# divides what they round by a small deviation.
TOLERANCE = 5e-6


def check(trained, cases, directory, cache):
    found = run_lines("images", directory, trained, *cases, cache=cache)
    assert [line.pop("case") for line in found] == list(cases)
    for line in found:
        assert line.pop("steps") == 2
        assert line.keys() >= {"train", "weights"}
        assert trained == "heads" or "evaluation" in line
        assert max(line.values()) < TOLERANCE, line


def test_batch_norms_are_those_of_one_device(compiled_on_disk, tmp_path):
    """Data parallel and fsdp at once, with rows that fill up the batch."""
    check("heads", ["segment:data=2,fsdp=4:fsdp"], tmp_path, compiled_on_disk)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classify", "segment"])
def test_whole_networks_train_under_every_layout(kind, compiled_on_disk, tmp_path):
    """Mixup, erasing, auxiliary head, micro-batches and evaluation too."""
    layouts = ("data=8:dp", "fsdp=8:fsdp", "fsdp=4,tensor=2:fsdp_tp")
    check("all", [f"{kind}:{layout}" for layout in layouts], tmp_path, compiled_on_disk)
