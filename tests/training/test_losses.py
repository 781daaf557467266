import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from florence_jax.training.losses import IGNORE, OutputLayer, shift_right, summed_loss
from florence_jax.training.settings import LossConfig
from tests.ops.kernel_checks import error


@pytest.fixture(scope="module")
def tokens():
    draw = np.random.default_rng(0)
    hidden = draw.normal(size=(3, 7, 8)).astype(np.float32)
    table = draw.normal(size=(8, 11)).astype(np.float32)
    labels = draw.integers(0, 11, (3, 7)).astype(np.int32)
    labels[0, 4:] = IGNORE
    labels[2] = IGNORE
    return hidden, table, labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_mean_is_torchs_cross_entropy(tokens, smoothing):
    hidden, table, labels = tokens
    sums = summed_loss(hidden, labels, OutputLayer(table.T), LossConfig(label_smoothing=smoothing))
    expected = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(
        torch.from_numpy(hidden @ table).flatten(0, 1), torch.from_numpy(labels).long().flatten()
    )
    assert sums.tokens == 4 + 7
    np.testing.assert_allclose(sums.loss / sums.tokens, expected, rtol=1e-6)


def test_z_loss_is_the_squared_log_normaliser(tokens):
    hidden, table, labels = tokens
    plain = summed_loss(hidden, labels, OutputLayer(table.T), LossConfig())
    with_z = summed_loss(hidden, labels, OutputLayer(table.T), LossConfig(z_loss=0.5))
    log_z = torch.logsumexp(torch.from_numpy(hidden @ table), -1).numpy()
    expected = 0.5 * np.square(log_z)[labels != IGNORE].sum()
    np.testing.assert_allclose(with_z.loss - plain.loss, expected, rtol=1e-5)
    np.testing.assert_array_equal(with_z.nll, plain.nll)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("block", [0, 4])
def test_locations_share_their_probability_with_their_neighbours(tokens, smoothing, block):
    hidden, table, labels = tokens
    locations, sigma, weight = range(3, 9), 0.7, 2.5
    config = LossConfig(
        label_smoothing=smoothing,
        vocabulary_block=block,
        location_sigma=sigma,
        location_weight=weight,
    )

    def loss(hidden, table):
        return summed_loss(hidden, labels, OutputLayer(table.T), config, locations).loss

    found, gradients = jax.value_and_grad(loss, argnums=(0, 1))(hidden, jnp.asarray(table))

    expected, weights = np.zeros((3, 7, 11)), np.ones((3, 7))
    for place in np.argwhere(labels != IGNORE):
        label = labels[tuple(place)]
        if label in locations:
            around = np.exp(-((np.arange(3, 9) - label) ** 2) / (2 * sigma**2))
            expected[tuple(place)][3:9] = around / around.sum()
            weights[tuple(place)] = weight
        else:
            expected[tuple(place)][label] = 1.0
    assert {weight, 1.0} == set(weights[labels != IGNORE])
    states, output = (torch.from_numpy(one).double().requires_grad_() for one in (hidden, table))
    losses = torch.nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="none")(
        (states @ output).flatten(0, 1), torch.from_numpy(expected).flatten(0, 1)
    )
    total = (losses * torch.from_numpy(weights * (labels != IGNORE)).flatten()).sum()
    total.backward()
    np.testing.assert_allclose(found, total.item(), rtol=1e-6)
    for mine, theirs in zip(gradients, (states.grad, output.grad), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def value_and_gradients(hidden, table, bias, labels, **settings):
    def loss(hidden, table, bias):
        config = LossConfig(label_smoothing=0.1, z_loss=0.1, **settings)
        sums = summed_loss(hidden, labels, OutputLayer(table, bias), config)
        return sums.loss, sums

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(hidden, table, bias)


# One word, blocks that leave a rest, and all words at once.
@pytest.mark.parametrize("block", [1, 4, 11, 50])
def test_blocks_of_words_change_neither_the_sums_nor_the_gradients(tokens, block):
    hidden, table, labels = tokens
    bias = np.random.default_rng(1).normal(size=11).astype(np.float32)
    whole = value_and_gradients(hidden, table.T, bias, labels)
    parts = value_and_gradients(hidden, table.T, bias, labels, vocabulary_block=block)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), parts, whole)


def test_blocks_of_words_take_a_label_for_most_likely_as_argmax_does(tokens):
    hidden, table, labels = tokens
    best = (hidden @ table).argmax(-1)
    layer, config = OutputLayer(table.T), LossConfig(vocabulary_block=3)
    found = summed_loss(hidden, np.where(labels == IGNORE, IGNORE, best), layer, config)
    assert found.correct == found.tokens == 11
    others = np.where(labels == IGNORE, IGNORE, (best + 1) % 11)
    assert summed_loss(hidden, others, layer, config).correct == 0


def test_blocks_of_words_are_as_exact_in_bfloat16(tokens):
    """Logits' gradients are rounded once more than on a CPU, as a TPU's products round them."""
    draw = np.random.default_rng(2)
    hidden = jnp.asarray(draw.normal(size=(4, 16, 64)), jnp.bfloat16)
    table = jnp.asarray(draw.normal(size=(1000, 64)), jnp.bfloat16)
    labels = draw.integers(0, 1000, (4, 16)).astype(np.int32)
    wide = [part.astype(jnp.float32) for part in (hidden, table)]
    bias = np.zeros(1000, np.float32)
    _, true = value_and_gradients(*wide, bias, labels)
    _, whole = value_and_gradients(hidden, table, bias, labels)
    _, parts = value_and_gradients(hidden, table, bias, labels, vocabulary_block=128)
    for own, other, exact in zip(parts, whole, true, strict=True):
        assert own.dtype == other.dtype
        # Two roundings of the same size, each independent of the other.
        assert error(own, exact) <= 2**0.5 * error(other, exact)


def compiled_text(platform, labels):
    def loss(hidden, table):
        return summed_loss(hidden, labels, OutputLayer(table), LossConfig()).loss

    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((*labels.shape, 128), (51289, 128))
    ]
    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(*shapes)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_all_logits_are_never_computed_at_once_on_an_accelerator(platform):
    labels = np.zeros((4, 256), np.int32)

    def products(platform):
        found = re.findall(r"dot_general.*-> tensor<(.*)xf32>", compiled_text(platform, labels))
        return [math.prod(map(int, size.split("x"))) for size in found]

    # A block of 32 MiB, filled up to whole lanes.
    assert 16 * 2**20 <= 4 * max(products(platform)) <= 33 * 2**20
    assert max(products("cpu")) == 4 * 256 * 51289


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_few_logits_take_no_loop(platform):
    labels = np.zeros((1, 64), np.int32)
    assert "stablehlo.while" not in compiled_text(platform, labels)


def test_accuracy_counts_targets_alone(tokens):
    hidden, table, labels = tokens
    best = (hidden @ table).argmax(-1)
    labels = np.where(labels == IGNORE, IGNORE, best)
    sums = summed_loss(hidden, labels, OutputLayer(table.T), LossConfig())
    assert sums.correct == sums.tokens == 11


def test_labels_are_shifted_once_as_transformers_does():
    from transformers.models.bart.modeling_bart import shift_tokens_right

    labels = np.array([[5, 6, 2, IGNORE], [7, 2, IGNORE, IGNORE]])
    expected = shift_tokens_right(torch.from_numpy(labels), 1, 2).numpy()
    np.testing.assert_array_equal(shift_right(labels, start_id=2, pad_id=1), expected)
    np.testing.assert_array_equal(expected[0], [2, 5, 6, 2])


WRONG = [
    *({"label_smoothing": 1.0}, {"z_loss": -1.0}, {"vocabulary_block": -1}),
    *({"location_weight": -0.5}, {"location_sigma": float("nan")}),
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_setting_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LossConfig(**wrong)
