import pytest

from florence_jax.checkpoint.param_tree import param_shapes
from florence_jax.config import base, large
from florence_jax.training.metrics.flops import peak_flops, update_flops
from florence_jax.training.optimizer import assign_param_groups


def flops(config, rules=((".*", 1.0),), **lengths):
    lengths = {"rows": 1, "image_size": (768, 768), "prompt": 16, "labels": 64} | lengths
    return update_flops(config, assign_param_groups(param_shapes(config), rules, config), **lengths)


@pytest.mark.parametrize(("config", "expected"), [(base(), 1.37e12), (large(), 5.24e12)])
def test_an_update_costs_three_times_the_forward_pass(config, expected):
    # The published sizes at 768 pixels with 64 label tokens; XLA's own count of the forward pass
    # agrees with the formulas within a few per cent, elementwise operations aside.
    assert flops(config) == pytest.approx(expected, rel=0.03)
    assert flops(config, rows=3) == 3 * flops(config)


def test_a_frozen_tower_has_no_backward_pass():
    whole = flops(base())
    frozen = flops(base(), rules=(("vision_tower/.*", 0.0), (".*", 1.0)))
    tower = (whole - frozen) / 2
    assert 0.1 * whole < tower < whole / 3


def test_devices_by_the_names_that_jax_has_for_them():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("cpu") == 0.0
