import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from florence_jax.training.losses import IGNORE, shift_right, summed_loss
from florence_jax.training.settings import LossConfig


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
    sums = summed_loss(hidden, labels, lambda h: h @ table, LossConfig(label_smoothing=smoothing))
    expected = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(
        torch.from_numpy(hidden @ table).flatten(0, 1), torch.from_numpy(labels).long().flatten()
    )
    assert sums.tokens == 4 + 7
    np.testing.assert_allclose(sums.loss / sums.tokens, expected, rtol=1e-6)


def test_z_loss_is_the_squared_log_normaliser(tokens):
    hidden, table, labels = tokens
    plain = summed_loss(hidden, labels, lambda h: h @ table, LossConfig())
    with_z = summed_loss(hidden, labels, lambda h: h @ table, LossConfig(z_loss=0.5))
    log_z = torch.logsumexp(torch.from_numpy(hidden @ table), -1).numpy()
    expected = 0.5 * np.square(log_z)[labels != IGNORE].sum()
    np.testing.assert_allclose(with_z.loss - plain.loss, expected, rtol=1e-5)
    np.testing.assert_array_equal(with_z.nll, plain.nll)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [0, 2])
def test_locations_share_their_probability_with_their_neighbours(tokens, smoothing, chunk):
    hidden, table, labels = tokens
    locations, sigma, weight = range(3, 9), 0.7, 2.5
    config = LossConfig(
        label_smoothing=smoothing, chunk=chunk, location_sigma=sigma, location_weight=weight
    )

    def loss(hidden, table):
        return summed_loss(hidden, labels, lambda h: h @ table, config, locations).loss

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


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_chunks_change_neither_the_loss_nor_its_gradient(tokens, chunk):
    hidden, table, labels = tokens

    def loss(hidden, table, chunk):
        config = LossConfig(label_smoothing=0.1, z_loss=0.1, chunk=chunk)
        return summed_loss(hidden, labels, lambda h: h @ table, config).loss

    whole = jax.value_and_grad(loss, argnums=(0, 1))(hidden, jnp.asarray(table), 0)
    parts = jax.value_and_grad(loss, argnums=(0, 1))(hidden, jnp.asarray(table), chunk)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), parts, whole)


def test_accuracy_counts_targets_alone(tokens):
    hidden, table, labels = tokens
    best = (hidden @ table).argmax(-1)
    labels = np.where(labels == IGNORE, IGNORE, best)
    sums = summed_loss(hidden, labels, lambda h: h @ table, LossConfig())
    assert sums.correct == sums.tokens == 11


def test_labels_are_shifted_once_as_transformers_does():
    from transformers.models.bart.modeling_bart import shift_tokens_right

    labels = np.array([[5, 6, 2, IGNORE], [7, 2, IGNORE, IGNORE]])
    expected = shift_tokens_right(torch.from_numpy(labels), 1, 2).numpy()
    np.testing.assert_array_equal(shift_right(labels, start_id=2, pad_id=1), expected)
    np.testing.assert_array_equal(expected[0], [2, 5, 6, 2])


WRONG = [
    *({"label_smoothing": 1.0}, {"z_loss": -1.0}, {"chunk": -1}),
    *({"location_weight": -0.5}, {"location_sigma": float("nan")}),
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_setting_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LossConfig(**wrong)
