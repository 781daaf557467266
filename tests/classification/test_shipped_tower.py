"""The shipped model's tower, frozen, tells classes that a random tower of its sizes does not."""

import jax
import numpy as np
import pytest

import florence_jax as fj
from florence_jax.classification.accuracy import top_k_accuracy
from florence_jax.classification.probe import fit_linear_probe, knn_predict
from florence_jax.processing.image.crop import preprocess_crop
from train.shapes.config import SceneConfig
from train.shapes.image_sets import class_of
from train.shapes.lexicon import KINDS
from train.shapes.render import draw
from train.shapes.world import ShapesWorld

pytestmark = pytest.mark.optimized

FITTED, ASKED, BATCH = 98, 56, 22


def test_a_trained_tower_is_probed_better_than_a_random_one():
    """Which of seven kinds of shapes a scene shows, by a linear layer and by neighbours."""
    world = ShapesWorld(config=SceneConfig(side=192, shapes=(1, 1), words=(0, 0)), split="valid")
    scenes = [world.scene(index) for index in range(FITTED + ASKED)]
    labels = np.array([KINDS.index(class_of(scene, "kind")) for scene in scenes])
    truth = labels[FITTED:, None].tolist()
    backbone, trained = fj.load_backbone("shapes")
    pixels = np.stack([preprocess_crop(draw(scene), backbone.config.image) for scene in scenes])
    linear, nearest = {}, {}
    for name, params in (("trained", trained), ("random", backbone.init(jax.random.key(0)))):
        batches = range(0, len(pixels), BATCH)
        vectors = np.concatenate(
            [backbone.embed(params, pixels[at : at + BATCH]) for at in batches]
        )
        known, asked = vectors[:FITTED], vectors[FITTED:]
        probe = fit_linear_probe(known, labels[:FITTED], num_classes=len(KINDS), l2=0.01)
        linear[name] = top_k_accuracy(probe.logits(asked), truth, (1,))[1]
        votes = knn_predict(known, labels[:FITTED], asked, num_classes=len(KINDS), k=5)
        nearest[name] = top_k_accuracy(votes, truth, (1,))[1]
    assert linear["trained"] >= 0.8, linear
    assert linear["trained"] >= linear["random"] + 0.4, linear
    assert nearest["trained"] >= nearest["random"] + 0.2, nearest
