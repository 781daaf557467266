"""The tiny model gives the numbers of both references: transformers' native class, run here, and
the original implementation, whose outputs are stored in the shared data."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.verify.reference import native_model, random_params_with_spread_logits
from convert.verify.stages import Inputs, attended, jax_stages, random_inputs, torch_stages
from florence_jax import config as configs
from florence_jax.checkpoint import load_checkpoint
from florence_jax.model import Model
from tests.shared_data import needs_shared, shared_path
from tests.small_model import small_model_config

pytestmark = pytest.mark.optimized

# Float32 sums in another order, on values of order one.
TOLERANCE = 2e-5
# DaViT's maps are not normalised: their values reach 300, where float32's own spacing is 3e-5 and
# the two references differ by more than TOLERANCE themselves. Of the largest value of a map:
MAP_TOLERANCE = 2e-6
# Our own random weights amplify rounding more than the stored ones. Of a stage's largest value:
SPREAD_TOLERANCE = 5e-6


def compare(ours, reference, mask):
    """Largest absolute difference of each stage; padded encoder rows (mask 0) do not count."""
    return {
        name: float(attended(name, np.abs(ours[name] - expected), mask).max())
        for name, expected in reference.items()
    }


@functools.cache
def original():
    config, params, _ = load_checkpoint(str(shared_path("tiny", "original")), dtype="float32")
    return Model(config=config), params


@functools.cache
def reference_outputs():
    with np.load(shared_path("tiny", "reference_original.npz")) as archive:
        return dict(archive)


def case(name):
    outputs = reference_outputs()
    values = {
        key.split("/")[1]: value for key, value in outputs.items() if key.startswith(f"{name}/")
    }
    size, batch = int(values["image_size"]), values["input_ids"].shape[0]
    rng = np.random.RandomState(int(values["pixel_seed"]))
    pixels = rng.standard_normal((batch, 3, size, size)).astype(np.float32)
    return values, np.moveaxis(pixels, 1, -1)


def case_inputs(name):
    values, pixels = case(name)
    return Inputs(
        pixel_values=pixels,
        input_ids=values["input_ids"],
        attention_mask=np.ones_like(values["input_ids"]),
        decoder_input_ids=values["decoder_input_ids"],
    )


@functools.cache
def truth_of(name):
    """Every stage of a case by transformers' class in float64."""
    model, params = original()
    return torch_stages(native_model(model.config, params).double(), case_inputs(name))


# A batch of two in the ordinary tests; the two single images compile all of it again.
CASES = [
    pytest.param("s224", marks=pytest.mark.slow),
    "s384b2",
    pytest.param("s768", marks=pytest.mark.slow),
]


@needs_shared
@pytest.mark.parametrize("name", CASES)
def test_original_implementation(name):
    model, params = original()
    values, pixels = case(name)

    @jax.jit
    def run(params):
        module = model.bind(params)
        features = module.encode_image(pixels)
        mask = jnp.ones(values["input_ids"].shape)
        # XLA computes the maps once.
        return (
            module.vision_tower(pixels),
            features,
            *module.encode(features, values["input_ids"], mask),
        )

    maps, features, encoder_hidden_states, _ = run(params)
    np.testing.assert_allclose(features, values["image_features"], rtol=0, atol=TOLERANCE)
    if "vision_last" in values:
        flat = maps.reshape(values["vision_last"].shape)
        bound = MAP_TOLERANCE * np.abs(flat).max()
        np.testing.assert_allclose(flat, values["vision_last"], rtol=0, atol=bound)
    # The stored states have a rounding error of their own, larger than ours: neither may be further
    # from the truth than TOLERANCE.
    exact = [stage for key, stage in truth_of(name).items() if key.startswith("encoder/")][-1]
    for found in (encoder_hidden_states, values["encoder_last_hidden_state"]):
        np.testing.assert_allclose(found, exact, rtol=0, atol=TOLERANCE)

    logits = model.logits(
        params,
        pixel_values=pixels,
        input_ids=values["input_ids"],
        decoder_input_ids=values["decoder_input_ids"],
    )
    np.testing.assert_allclose(logits, values["logits"], rtol=0, atol=TOLERANCE)

    labels = values["labels"]
    log_probabilities = np.asarray(jax.nn.log_softmax(logits))
    loss = -np.take_along_axis(log_probabilities, labels[..., None], -1).mean()
    np.testing.assert_allclose(loss, values["loss"], rtol=1e-6)


def assert_stages_agree(model, params, inputs, bound, truth=None):
    """Ours against transformers' class in float64, which has no rounding of its own to speak of.

    `bound(name, largest)` is the largest error allowed at a stage.
    """
    reference = native_model(model.config, params)
    truth = truth or torch_stages(reference.double(), inputs)
    ours = jax_stages(model, params, inputs)
    assert list(ours) == list(truth)
    errors = compare(ours, truth, inputs.attention_mask)
    bounds = {name: bound(name, np.abs(stage).max()) for name, stage in truth.items()}
    excess = {name: error for name, error in errors.items() if error > bounds[name]}
    assert not excess, excess
    assert np.abs(truth["logits"]).max() > 5, "logits must be spread out to mean anything"
    # In float32 transformers is no nearer to the truth than we are.
    theirs = compare(torch_stages(reference.float(), inputs), truth, inputs.attention_mask)
    assert sum(errors.values()) < 1.5 * sum(theirs.values()), (errors, theirs)


# 384 divides into windows, as `CASES` do; 224 needs window padding, and so does the last, which is
# not square.
@pytest.mark.parametrize(
    "size",
    [
        pytest.param((224, 224), marks=pytest.mark.slow),
        pytest.param((384, 384), marks=pytest.mark.slow),
        (160, 352),
    ],
)
def test_native_class_every_stage(size):
    config = configs.tiny()
    model, params = Model(config=config), random_params_with_spread_logits(config, seed=sum(size))
    inputs = random_inputs(model, batch=2, size=size, text=9, target=7, seed=1)
    assert_stages_agree(model, params, inputs, lambda _, largest: SPREAD_TOLERANCE * largest)


# The ordinary tests compare these weights with the original's outputs, above.
@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize("name", ["s224", "s384b2", "s768"])
def test_original_weights_in_native_class_every_stage(name):
    model, params = original()

    def bound(name, largest):
        return MAP_TOLERANCE * largest if name.startswith("vision/") else TOLERANCE

    assert_stages_agree(model, params, case_inputs(name), bound, truth_of(name))


def test_untied_head_and_output_bias():
    config = dataclasses.replace(
        small_model_config(), tie_word_embeddings=False, final_logits_bias=True
    )
    params = random_params_with_spread_logits(config, seed=4)
    model = Model(config=config)
    inputs = random_inputs(model, batch=1, size=(64, 64), text=5, target=4, seed=3)
    bias = params.pop("final_logits_bias")
    without_bias = dataclasses.replace(config, final_logits_bias=False)
    reference = torch_stages(native_model(without_bias, params), inputs)
    ours = jax_stages(model, {**params, "final_logits_bias": bias}, inputs)
    np.testing.assert_allclose(ours["logits"], reference["logits"] + bias, rtol=0, atol=1e-4)
