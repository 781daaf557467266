"""A checkpoint knows nothing of the mesh, and the data nothing of the processes."""

import dataclasses
import itertools

import numpy as np
import pytest

from florence_jax.training.data.loader import make_loader
from florence_jax.training.data.preprocess import make_preprocessor
from florence_jax.training.data.sources import open_data
from florence_jax.training.pretrained import prepare_pretrained
from tests.sharding.process import config_of
from tests.sharding.restoring import PLACES
from tests.sharding.subprocesses import run_lines


@pytest.mark.slow
def test_arrays_are_exact_across_meshes(tmp_path, compiled_on_disk):
    found = run_lines("restoring", str(tmp_path), cache=compiled_on_disk)
    pairs = {(tuple(line["saved"]), tuple(line["restored"])) for line in found}
    assert pairs == set(itertools.product(PLACES, PLACES))
    assert all(line["exact"] and line["placed"] and line["rows"] == 3 for line in found)


@pytest.mark.parametrize("step", [0, 7])
def test_any_number_of_processes_brings_the_same_rows_in_one_shape(step, tmp_path):
    config = dataclasses.replace(config_of(tmp_path, "", 9), batch_size=8)
    start = prepare_pretrained(config, tmp_path / "processor")
    preprocessor = make_preprocessor(config.data, start)

    def batch(shares):
        sources = open_data(config.data.train, seed=config.seed).train
        loaders = [make_loader(config, preprocessor, sources, (n, shares)) for n in range(shares)]
        return [loader.batch(step) for loader in loaders]

    (whole,) = batch(1)
    for shares in (2, 4, 8):
        parts = batch(shares)
        assert tuple(itertools.chain(*(part.ids for part in parts))) == whole.ids
        for name in ("images", "input_ids", "labels"):
            # Each process makes its share without asking the others how long theirs is.
            joined = np.concatenate([getattr(part, name) for part in parts], axis=1)
            expected = getattr(whole, name)
            assert joined.tobytes() == expected.tobytes()
            assert joined.shape == expected.shape
