"""Which process is which, and whose blocks are whose."""

import pytest

from florence_jax.batch.blocks import Blocks, ProcessShare, find_share, is_block_name


@pytest.mark.parametrize(("count", "blocks"), [(1, 5), (3, 10), (4, 3), (7, 100)])
def test_every_process_knows_every_block_and_begins_with_its_own(count, blocks):
    first = []
    for index in range(count):
        order = ProcessShare(index, count).order(blocks)
        assert sorted(order) == list(range(blocks))
        own = len(range(index, blocks, count))
        first += order[:own]
        assert order[:own] == list(range(index, blocks, count))
    assert sorted(first) == list(range(blocks))


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, ProcessShare(0, 1)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, ProcessShare(3, 8)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, ProcessShare(1, 2)),
        ({"JAX_PROCESS_ID": "2", "JAX_NUM_PROCESSES": "4"}, ProcessShare(2, 4)),
        ({"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, ProcessShare(1, 2)),
        ({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}, ProcessShare(0, 1)),
        ({"SLURM_NTASKS": "8"}, ProcessShare(0, 1)),
    ],
)
def test_launchers_are_understood(environment, share):
    assert find_share(None, None, environment) == share
    assert find_share(5, 9, environment) == ProcessShare(5, 9)


def test_numbers_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="belong together"):
        find_share(1, None, {})
    with pytest.raises(ValueError, match="process 4 of 4"):
        find_share(4, 4, {})
    with pytest.raises(ValueError, match="SLURM_PROCID and SLURM_NTASKS name no process"):
        find_share(None, None, {"SLURM_PROCID": "x", "SLURM_NTASKS": "2"})


def test_blocks_are_contiguous_and_cover_everything():
    blocks = Blocks(total=23, size=5)
    assert [number for block in range(len(blocks)) for number in blocks[block]] == list(range(23))
    assert list(blocks.names("jsonl"))[3] == "block-00003-of-00005.jsonl"
    assert all(is_block_name(name) for name in blocks.names("parquet"))
    assert not is_block_name("block-00003-of-00005.jsonl.sha256")
    with pytest.raises(ValueError, match="a block of 0 items"):
        Blocks(total=3, size=0)
