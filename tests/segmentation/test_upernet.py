"""UperNet's heads beside transformers': logits, losses, gradients, running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import UperNetConfig
from transformers.models.upernet import modeling_upernet

from florence_jax.checkpoint.param_tree import flatten, unflatten
from florence_jax.checkpoint.pytorch.tower_names import tower_transform
from florence_jax.segmentation.names import segmenter_name
from florence_jax.segmentation.segmenter import IGNORED, pixel_loss
from florence_jax.segmentation.upernet import (
    AuxiliaryHead,
    BatchNorm,
    UperNetHead,
    resize_maps,
)

DIMS, GRIDS, IMAGE = (8, 16, 24, 32), ((19, 25), (10, 13), (5, 7), (3, 4)), (75, 98)
HIDDEN, AUXILIARY, CLASSES, WEIGHT = 16, 12, 7, 0.4
# Sums of float32 in another order, on values of order one; gradients relative to their largest.
TOLERANCE = 1e-5


class Heads(nnx.Module):
    def __init__(self):
        self.decode_head = UperNetHead(DIMS, HIDDEN, CLASSES, (1, 2, 3, 6), rngs=None)
        self.auxiliary_head = AuxiliaryHead(DIMS[-2], AUXILIARY, CLASSES, rngs=None)

    def __call__(self, maps, rows=None):
        found = self.decode_head(maps, rows), self.auxiliary_head(maps[-2], rows)
        return tuple(resize_maps(logits, IMAGE) for logits in found)


class Reference(torch.nn.Module):
    def __init__(self):
        super().__init__()
        config = UperNetConfig(hidden_size=HIDDEN, auxiliary_channels=AUXILIARY, num_labels=CLASSES)
        self.decode_head = modeling_upernet.UperNetHead(config, in_channels=DIMS)
        self.auxiliary_head = modeling_upernet.UperNetFCNHead(config, in_channels=DIMS)

    def forward(self, maps):
        return tuple(
            torch.nn.functional.interpolate(head(maps), size=IMAGE, mode="bilinear")
            for head in (self.decode_head, self.auxiliary_head)
        )


def random_reference():
    reference = Reference()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in reference.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim > 1:
                tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)
            elif name.endswith("running_var"):
                tensor.copy_(0.5 + noise**2)
            elif tensor.ndim == 1:
                tensor.copy_(0.2 * noise + (".batch_norm.weight" in name))
    return reference


def as_params(named, template):
    """A tree like `template` with the values of torch's names; each is used once."""
    leaves = {}
    left = dict(named)
    for path, leaf in flatten(template):
        array = left.pop(segmenter_name(path, named_blocks=False)).detach().numpy()
        leaves[path] = tower_transform(path, leaf.shape).to_ours(array).copy()
    assert all(name.endswith("num_batches_tracked") for name in left), left
    return unflatten(leaves)


def loss_of(logits, labels):
    """transformers' loss of the whole model."""
    cross_entropy = torch.nn.CrossEntropyLoss(ignore_index=IGNORED)
    return cross_entropy(logits[0], labels) + WEIGHT * cross_entropy(logits[1], labels)


@pytest.mark.parametrize("train", [False, True])
def test_logits_loss_and_gradients(train):
    reference = random_reference().train(train)
    graphdef, state = nnx.split(Heads())
    params = as_params(reference.state_dict(), nnx.to_pure_dict(state))
    rng = np.random.default_rng(0)
    maps = [
        rng.standard_normal((2, *grid, dim)).astype(np.float32)
        for grid, dim in zip(GRIDS, DIMS, strict=True)
    ]
    labels = rng.integers(0, CLASSES, (2, *IMAGE))
    labels[:, :9] = IGNORED

    def run(params, maps, labels):
        heads = nnx.merge(graphdef, params)
        logits = heads(maps, jnp.ones(2, bool) if train else None)
        loss = pixel_loss(logits[0], labels) + WEIGHT * pixel_loss(logits[1], labels)
        return loss, (logits, nnx.to_pure_dict(nnx.state(heads)))

    gradient = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))
    (loss, (logits, after)), gradients = gradient(
        params, [jnp.asarray(one) for one in maps], labels
    )

    inputs = [torch.tensor(np.moveaxis(one, -1, 1)).requires_grad_() for one in maps]
    expected = reference(inputs)
    their_loss = loss_of(expected, torch.tensor(labels))
    their_loss.backward()
    for ours, theirs in zip(logits, (one.detach() for one in expected), strict=True):
        np.testing.assert_allclose(
            ours, theirs.movedim(1, -1), rtol=0, atol=TOLERANCE * float(theirs.max())
        )
    np.testing.assert_allclose(loss, their_loss.item(), rtol=TOLERANCE)

    # Running statistics have no gradient, and change in training alone.
    named = {name: one.grad for name, one in reference.named_parameters()}
    stats = {name: one for name, one in reference.named_buffers() if "running" in name}
    zeros = {name: torch.zeros_like(one) for name, one in stats.items()}
    theirs = dict(flatten(as_params(named | zeros, params)))
    for path, ours in flatten(gradients[0]):
        if path.rpartition("/")[2] in ("mean", "var"):
            continue
        bound = TOLERANCE * np.abs(theirs[path]).max()
        np.testing.assert_allclose(ours, theirs[path], rtol=0, atol=bound, err_msg=path)
    for ours, one in zip(gradients[1], inputs, strict=True):
        grad = one.grad.movedim(1, -1).numpy()
        np.testing.assert_allclose(ours, grad, rtol=0, atol=TOLERANCE * np.abs(grad).max())
    changed = as_params(named | stats, params)
    before = dict(flatten(params))
    new = dict(flatten(changed))
    for path, ours in flatten(after):
        if path.rpartition("/")[2] in ("mean", "var"):
            np.testing.assert_allclose(ours, new[path], rtol=TOLERANCE, atol=TOLERANCE)
            assert train == bool(np.abs(np.asarray(ours) - before[path]).max() > 0)


def test_rows_that_do_not_count_are_no_part_of_the_statistics():
    """Beside torch's batch norm over the others; where no row counts, nothing moves."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 5, 3, 6)).astype(np.float32) * 2 + 1
    x[[1, 3]] = 9.0
    rows = jnp.array([True, False, True, False])
    reference = torch.nn.BatchNorm2d(6)
    expected = reference(torch.tensor(np.moveaxis(x[[0, 2]], -1, 1))).movedim(1, -1)
    norm = BatchNorm(6)
    found = norm(jnp.asarray(x), rows)
    np.testing.assert_allclose(found[rows], expected.detach(), rtol=0, atol=TOLERANCE)
    after = np.asarray(norm.mean[...]), np.asarray(norm.var[...])
    theirs = reference.running_mean, reference.running_var
    for ours, one in zip(after, theirs, strict=True):
        np.testing.assert_allclose(ours, one, rtol=TOLERANCE)
    assert np.isfinite(norm(jnp.asarray(x), jnp.zeros(4, bool))).all()
    np.testing.assert_array_equal((norm.mean[...], norm.var[...]), after)
