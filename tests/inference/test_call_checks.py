"""Values of a call that jax or Python would misread are refused by name."""

import numpy as np
import pytest

from florence_jax.generation import GenerationConfig
from florence_jax.inference.batching import batch_buckets
from florence_jax.inference.overrides import sampling_key, with_overrides


@pytest.mark.parametrize("seed", [-1, 1 << 32, 1 << 64])
def test_a_seed_has_32_bits(seed):
    with pytest.raises(ValueError, match="expected an integer from 0 to 4294967295"):
        sampling_key(GenerationConfig(do_sample=True), seed)


def test_settings_are_a_generation_config():
    with pytest.raises(TypeError, match="expected a florence_jax"):
        with_overrides({"num_beams": 2}, {}, ())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("size", ["8", 2.0])
def test_a_batch_size_is_an_integer(size):
    with pytest.raises(ValueError, match="batch_size is"):
        batch_buckets(size)
    assert batch_buckets(np.int64(4)) == (1, 2, 4)  # pyright: ignore[reportArgumentType]
