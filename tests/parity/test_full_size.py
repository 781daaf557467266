"""Full-size base and large beside transformers' native class, every stage, end to end and alone."""

import pytest

from convert.verify.metrics import first_over
from convert.verify.native import compare_with_native
from convert.verify.reference import random_params_with_spread_logits
from convert.verify.stages import random_inputs
from florence_jax import config as configs
from florence_jax.model import Model

pytestmark = [pytest.mark.slow, pytest.mark.optimized]


def rows(preset, size, dtype):
    config = configs.PRESETS[preset]()
    inputs = random_inputs(Model(config=config), batch=1, size=size, text=12, target=8, seed=0)
    params = random_params_with_spread_logits(config, 0)
    return compare_with_native(config, params, inputs, [dtype], new_tokens=0)[dtype]


@pytest.mark.parametrize("size", [(768, 768), (512, 640)])
@pytest.mark.parametrize("preset", ["base", "large"])
def test_every_stage(preset, size):
    found = rows(preset, size, "float32")
    assert first_over(found) is None
    # Through up to 36 layers, and in each by itself.
    assert all(row.relative < 2e-5 for row in found)
    assert all(row.own_error < 2e-6 for row in found)


def test_bfloat16_is_no_further_from_the_truth_than_pytorchs():
    found = rows("base", (768, 768), "bfloat16")
    assert first_over(found) is None
    # The same roundings in another order: equal up to their luck.
    assert all(row.error < 2 * row.reference_error for row in found)
