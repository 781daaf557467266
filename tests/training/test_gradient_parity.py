"""Loss and gradients beside transformers' native class, in float32."""

import dataclasses

import jax
import numpy as np
import pytest
import torch

from convert.verify.reference import native_model
from florence_jax.checkpoint import torch_tensors
from florence_jax.checkpoint.param_tree import flatten, unflatten
from florence_jax.model import Model, random_params_with_spread_logits
from florence_jax.processing.image.pixels import ImageConfig
from florence_jax.training.losses import IGNORE
from florence_jax.training.state import Batch
from florence_jax.training.step import LossFn
from tests.small_model import small_model_config

pytestmark = pytest.mark.optimized

# Drop-path and dropout off; the token table wide enough for the image placeholder.
_SMALL = small_model_config(dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)
CONFIG = dataclasses.replace(_SMALL, vision=dataclasses.replace(_SMALL.vision, drop_path_rate=0.0))


@pytest.fixture(scope="module")
def sides():
    """(our loss, our gradients by native name, torch's loss, torch's gradients)."""
    draw = np.random.default_rng(0)
    params = random_params_with_spread_logits(CONFIG, seed=3)
    labels = draw.integers(4, 1280, (2, 9)).astype(np.int32)
    labels[1, 5:] = IGNORE
    prompt = draw.integers(4, 1280, (2, 7)).astype(np.int32)
    prompt[0, 4:] = CONFIG.text.pad_token_id
    images = draw.integers(0, 256, (2, 64, 96, 3)).astype(np.uint8)
    objective = LossFn(model=Model(config=CONFIG), image=ImageConfig(size=(64, 96)))

    def mean_loss(flat):
        sums = objective(flat, Batch(images, prompt, labels), None)
        return sums.loss / sums.tokens

    with jax.default_matmul_precision("highest"):
        loss, gradients = jax.jit(jax.value_and_grad(mean_loss))(dict(flatten(params)))
    tree = unflatten({path: np.asarray(leaf) for path, leaf in gradients.items()})
    ours = dict(torch_tensors(tree, "native", tied_names=False))

    model = native_model(CONFIG, params).train()
    tokens = CONFIG.num_image_tokens(64, 96)
    ids = np.concatenate([np.full((2, tokens), model.config.image_token_id), prompt], axis=1)
    pixels = np.array(objective.pixels(images)).transpose(0, 3, 1, 2)
    out = model(
        pixel_values=torch.from_numpy(pixels),
        input_ids=torch.from_numpy(ids).long(),
        attention_mask=torch.from_numpy(ids != CONFIG.text.pad_token_id).long(),
        labels=torch.from_numpy(labels).long(),
    )
    out.loss.backward()
    theirs = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return float(loss), ours, out.loss.item(), theirs


def test_the_loss_is_transformers(sides):
    loss, _, expected, _ = sides
    assert loss == pytest.approx(expected, rel=1e-6)


def test_every_gradient_is_transformers(sides):
    _, ours, _, theirs = sides
    constant = {name for name in ours if "temporal" in name}
    assert ours.keys() - constant == theirs.keys()
    largest = max(np.abs(gradient).max() for gradient in theirs.values())
    for name, expected in theirs.items():
        if name.endswith("k_proj.bias"):
            # A softmax ignores what all its keys share, so this gradient is zero but for rounding.
            assert max(np.abs(ours[name]).max(), np.abs(expected).max()) < 1e-7 * largest
            continue
        scale = np.abs(expected).max()
        np.testing.assert_allclose(ours[name] / scale, expected / scale, atol=1e-5, err_msg=name)
