"""Backbones beside timm itself: outputs of every model, and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from florence_jax.backbone.config import preset
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.checkpoint.pytorch.tower_names import TowerStyle, tower_name, tower_transform
from florence_jax.model.davit import DaViT
from tests.backbone.timm_parity import NAMES, SIZES, both, errors, reduced
from tests.backbone.timm_reference import import_timm, needs_timm

pytestmark = [needs_timm, pytest.mark.slow, pytest.mark.optimized]


@pytest.mark.parametrize("name", NAMES)
def test_every_stage(name):
    for size in SIZES[name.endswith("_fl")]:
        for key, (absolute, relative) in errors(name, size).items():
            assert absolute < 2e-5 or relative < 1e-5, (name, size, key)


@pytest.mark.parametrize("name", ["davit_tiny", "davit_base"])
def test_drop_path_rates(name):
    model = import_timm().create_model(name, drop_path_rate=0.25)
    vision = dataclasses.replace(preset(name).vision, drop_path_rate=0.25, drop_path_per_block=True)
    tower = nnx.eval_shape(lambda: DaViT(vision, rngs=None))
    for ours, theirs in zip(tower.stages, model.stages, strict=True):
        for rates, block in zip(ours.drop_path_rates, theirs.blocks, strict=True):
            for rate, half in zip(rates, block, strict=True):
                # Identity stands for a rate of zero.
                drops = [getattr(half, f"drop_path{n}", None) for n in (1, 2)]
                found = [getattr(drop, "drop_prob", 0.0) for drop in drops]
                np.testing.assert_allclose(found, rate, atol=1e-7)


def test_gradients(tmp_path):
    import torch

    backbone, params, model = both(reduced("davit_tiny"), tmp_path / "saved")
    images = np.random.default_rng(2).standard_normal((2, 75, 98, 3)).astype(np.float32)
    labels = np.array([3, 700])

    def loss(params):
        log_probs = jax.nn.log_softmax(backbone.logits(params, images))
        return -jnp.take_along_axis(log_probs, labels[:, None], axis=1).mean()

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    logits = model(torch.tensor(np.moveaxis(images, -1, 1)))
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(labels))
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
    theirs = {name: one.grad.numpy() for name, one in model.named_parameters()}
    for path, gradient in flatten(gradients):
        grad = theirs.pop(tower_name(path, TowerStyle("timm")))
        grad = tower_transform(path, gradient.shape).to_ours(grad)
        # Sums over two images' tokens, in another order.
        bound = 2e-5 * np.abs(grad).max()
        np.testing.assert_allclose(gradient, grad, rtol=0, atol=bound, err_msg=path)
    assert not theirs
