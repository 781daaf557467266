"""A run holds no more after many inputs than after some."""

import pytest

from tests.benchmarks.batch_memory import growth, measure


@pytest.mark.slow
def test_memory_stays_flat():
    samples = measure(20_000)
    # Of 12,000 inputs between the two stretches, each would leave behind less than a kilobyte.
    assert growth(samples) < 10
    assert samples[0][1] > 50
