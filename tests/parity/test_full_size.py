"""Full-size base and large beside transformers' native class, every stage and the logits."""

import pytest

from tests.parity.measure import measure

pytestmark = pytest.mark.slow

# Of the largest value of a stage: float32 sums in another order through up to 36 layers.
RELATIVE_TOLERANCE = 1e-4


@pytest.mark.parametrize("size", [(768, 768), (512, 640)])
@pytest.mark.parametrize("preset", ["base", "large"])
def test_every_stage(preset, size):
    rows = list(measure(preset, size, ["float32"]))
    assert rows[-1].stage == "logits"
    assert rows[-1].largest > 5, "logits must be spread out for the comparison to mean anything"
    excess = [row for row in rows if row.ours_to_pytorch > RELATIVE_TOLERANCE * row.largest]
    assert not excess, excess


def test_bfloat16_is_no_further_from_the_truth_than_pytorchs():
    # The same roundings in another order: equal up to their luck.
    rows = measure("base", (768, 768), ["bfloat16"])
    excess = [row for row in rows if row.ours_to_truth > 2 * row.pytorch_to_truth]
    assert not excess, excess
