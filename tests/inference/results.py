"""Comparing results whose tokens must be equal."""

import numpy as np


def assert_close(ours, expected):
    """Equal tokens give equal shapes and labels; scores may differ in float32's last digits."""
    if isinstance(expected, list):
        assert len(ours) == len(expected)
        for one, other in zip(ours, expected, strict=True):
            assert_close(one, other)
        return
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, str):
            assert ours[key] == value
            continue
        for field, entries in value.items():
            if "scores" in field:
                np.testing.assert_allclose(ours[key][field], entries, rtol=1e-4)
            else:
                assert ours[key][field] == entries
