"""Backbones give the numbers of timm in `data/`, and take nothing but normalised pixels."""

import jax
import numpy as np
import pytest
import torch

import florence_jax as fj
from tests.backbone.timm_reference import DATA, STORED, stored_images

pytestmark = pytest.mark.optimized


def assert_close(ours, theirs):
    """Within 2e-5, or 1e-5 of the largest value: sums of float32 in another order."""
    bound = max(2e-5, 1e-5 * np.abs(theirs).max())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound)


@pytest.mark.parametrize("name", STORED)
def test_timms_values(name):
    backbone, params = fj.load_backbone(DATA / name)
    with np.load(DATA / f"{name}.npz") as archive:
        theirs = dict(archive)
    images = stored_images()
    normed, more = fj.load_backbone(DATA / name, feature_norms=True)
    calls = [backbone.features, backbone.embed]
    if "logits" in theirs:
        calls.append(backbone.logits)
    else:
        with pytest.raises(ValueError, match=r"no classifier: load it with num_classes=N"):
            backbone.logits(params, images)

    @jax.jit
    def outputs(more):
        """Of one program, which compiles the tower once."""
        plain = {part: more[part] for part in params}
        return [call(plain, images) for call in calls], normed.features(more, images)

    (maps, embedding, *logits), normalised = outputs(more)
    for number, one in enumerate(maps):
        assert_close(one, theirs[f"stage{number}"])
    assert_close(embedding, theirs["embed"])
    if logits:
        assert_close(logits[0], theirs["logits"])
    # Per-stage norms start as plain layer norms.
    for one, plain in zip(normalised, maps, strict=True):
        expected = torch.nn.functional.layer_norm(torch.tensor(np.array(plain)), plain.shape[-1:])
        assert_close(one, expected.numpy())


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((1, 3, 4, 4), np.float32),
        np.zeros((0, 4, 4, 3), np.float32),
        np.zeros((1, 4, 4, 3), np.uint8),
        [[0.0]],
    ],
)
def test_images_of_another_form_are_refused(images):
    """Bytes too: their 0 to 255 would be taken for normalised pixels."""
    backbone, params = fj.load_backbone(DATA / "paper")
    for call in (backbone.features, backbone.embed, backbone.logits):
        with pytest.raises(ValueError, match=r"expected normalised pixels float\[B, H, W, 3\]"):
            call(params, images)
