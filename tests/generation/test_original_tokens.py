"""Tokens and scores of Florence-2's original code, stored for the tiny checkpoint."""

import numpy as np
import pytest

from florence_jax.checkpoint import load_checkpoint
from florence_jax.generation import GenerationConfig, generate
from florence_jax.model import Model
from tests.shared_data import needs_shared, shared_path

pytestmark = pytest.mark.optimized

ORIGINAL = {
    "greedy": GenerationConfig(no_repeat_ngram_size=3, max_new_tokens=20),
    "greedy_nongram": GenerationConfig(max_new_tokens=20),
    "beam3": GenerationConfig(num_beams=3, no_repeat_ngram_size=3, max_new_tokens=20),
    "beam3_early": GenerationConfig(
        num_beams=3, no_repeat_ngram_size=3, early_stopping=True, max_new_tokens=20
    ),
    "beam3_nongram": GenerationConfig(num_beams=3, max_new_tokens=20),
}

ORDINARY = ("greedy", "beam3", "beam3_early")


@needs_shared
@pytest.mark.parametrize(
    "case",
    # The batch of two in the ordinary tests, the other sizes of image behind `slow`.
    [
        pytest.param("s224", marks=pytest.mark.slow),
        "s384b2",
        pytest.param("s768", marks=pytest.mark.slow),
    ],
)
def test_original_implementation(case):
    """Tokens and beam scores that the original code gave on the tiny checkpoint."""
    config, params, _ = load_checkpoint(shared_path("tiny", "original"), dtype="float32")
    model = Model(config=config)
    with np.load(shared_path("tiny", "reference_original.npz")) as archive:
        expected = {k.split("/")[1]: archive[k] for k in archive if k.startswith(f"{case}/")}
    size, ids = int(expected["image_size"]), expected["input_ids"]
    noise = np.random.RandomState(int(expected["pixel_seed"]))
    pixels = noise.standard_normal((len(ids), 3, size, size)).astype(np.float32)
    features = model.encode_image(params, np.moveaxis(pixels, 1, -1))
    # Each way of decoding compiles a program.
    for name in ORDINARY if case == "s384b2" else ORIGINAL:
        settings = ORIGINAL[name]
        out = generate(model, params, image_features=features, input_ids=ids, config=settings)
        np.testing.assert_array_equal(out.sequences, expected[name], err_msg=name)
        if name == "beam3":
            np.testing.assert_allclose(
                out.sequence_scores, expected["beam3_scores"], rtol=0, atol=1e-5
            )
