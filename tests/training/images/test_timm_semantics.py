"""Mixup, random erasing, layer-wise decay and the moving average give timm's values."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from florence_jax.backbone.backbone import backbone_shapes
from florence_jax.backbone.config import BackboneConfig, preset
from florence_jax.checkpoint.pytorch.tower_names import TowerStyle, tower_name
from florence_jax.training.images.config import MixConfig
from florence_jax.training.images.mixing import (
    change_batch,
    erase,
    mix,
    rectangle,
    reversed_rows,
)
from florence_jax.training.images.objectives import class_sums
from florence_jax.training.optimizer import assign_param_groups, update_ema
from tests.backbone.timm_reference import needs_timm
from tests.training.images import timm_reference as timm
from tests.training.images.timm_reference import inputs

GIVEN = inputs()
COUNTED = jnp.ones(6, bool)


@pytest.fixture(scope="module")
def stored():
    return np.load(timm.VALUES)


@needs_timm
def test_stored_values_are_timm_s(stored):
    arrays, layers = timm.made()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, stored[name], err_msg=name)
    assert layers == json.loads(timm.LAYERS.read_text())


def test_rectangles_are_erased_where_timm_erases_them(stored):
    found = jax.vmap(lambda one: rectangle(one, timm.SIZE, MixConfig()))(GIVEN["draws"])
    np.testing.assert_array_equal(found, stored["erased"])
    # The first two draws do not fit at once, and no rectangle fits at all without room.
    assert np.asarray(found[:2]).any((1, 2)).all()
    never = rectangle(jnp.full((10, 4), 0.999), (1, 1), MixConfig(erasing_area=(1.0, 1.0)))
    assert not never.any()


def test_a_share_of_images_is_erased_by_noise_or_the_mean():
    images = jnp.full((400, 8, 8, 3), 5.0)
    key = jax.random.key(0)
    plain = erase(key, images, MixConfig(erasing=0.25, erasing_noise=False))
    changed = np.asarray((plain == 0).any((1, 2, 3)))
    assert 0.18 < changed.mean() < 0.32
    noisy = erase(key, images, MixConfig(erasing=0.25))
    erased = np.asarray(plain == 0)
    assert (np.asarray(noisy)[~erased] == 5.0).all()
    values = np.asarray(noisy)[erased]
    assert abs(values.mean()) < 0.1
    assert abs(values.std() - 1) < 0.1


def test_mixed_images_loss_and_gradient_are_timm_s(stored):
    mixed = mix(GIVEN["images"], jnp.asarray(GIVEN["labels"]), COUNTED, jnp.float32(timm.SHARE))
    np.testing.assert_allclose(mixed.images, stored["mixed"], rtol=0, atol=1e-6)

    def loss(logits):
        sums = class_sums(logits, mixed, COUNTED, timm.SMOOTHING)
        return sums.loss / sums.tokens

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(GIVEN["logits"]))
    np.testing.assert_allclose(value, stored["loss"], rtol=1e-6)
    np.testing.assert_allclose(gradient, stored["gradient"], rtol=0, atol=1e-7)


def test_rows_without_a_label_are_not_mixed_into_others():
    counted = COUNTED.at[5].set(False)
    labels = jnp.asarray(GIVEN["labels"])
    mixed = mix(GIVEN["images"], labels, counted, jnp.float32(timm.SHARE))
    np.testing.assert_array_equal(mixed.share, np.float32([1, 0.3, 0.3, 0.3, 0.3, 1]))
    np.testing.assert_array_equal(mixed.images[0], GIVEN["images"][0])
    sums = class_sums(jnp.asarray(GIVEN["logits"]), mixed, counted, 0.0)
    assert sums.tokens == 5


def test_rows_that_fill_up_a_batch_change_no_mixture():
    """Two processes' shares of three rows, each filled up to four."""
    images, labels = jnp.asarray(GIVEN["images"]), jnp.asarray(GIVEN["labels"])
    places = [0, 1, 2, 4, 5, 6]
    partners = reversed_rows(places, 8)
    assert partners == (6, 5, 4, 3, 2, 1, 0, 7)
    share = jnp.float32(timm.SHARE)
    expected = mix(images, labels, COUNTED, share)

    def filled(array):
        return jnp.zeros((8, *array.shape[1:]), array.dtype).at[np.array(places)].set(array)

    found = mix(filled(images), filled(labels), filled(COUNTED), share, partners)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours[np.array(places)], theirs)


def test_mixing_can_be_off_and_depends_on_the_key_alone():
    images, labels = jnp.asarray(GIVEN["images"]), jnp.asarray(GIVEN["labels"])
    key = jax.random.key(1)
    off = change_batch(key, images, labels, COUNTED, MixConfig(mixup=0.8, mixup_prob=0.0))
    np.testing.assert_array_equal(off.images, images)
    np.testing.assert_array_equal(off.share, 1)
    on = MixConfig(mixup=0.8, erasing=0.5)
    first, second = (change_batch(key, images, labels, COUNTED, on) for _ in range(2))
    np.testing.assert_array_equal(first.images, second.images)
    assert 0 < float(first.share[0]) < 1
    assert not np.array_equal(first.images, images)


def test_learning_rates_and_decay_by_layer_are_timm_s():
    vision = preset("davit_tiny").vision
    paths = backbone_shapes(BackboneConfig(vision=vision, num_classes=timm.CLASSES))
    groups = assign_param_groups(paths, ((".*", 1.0),), vision, layer_decay=timm.LAYER_DECAY)
    expected = json.loads(timm.LAYERS.read_text())
    style = TowerStyle("timm")
    assert {tower_name(path, style) for path in paths} == expected.keys()
    for path, group in groups.items():
        rate, decay = expected[tower_name(path, style)]
        assert group.rate == pytest.approx(rate, rel=1e-12), path
        assert group.decayed == (decay > 0), path


def test_norms_of_feature_maps_are_the_top_layer_and_not_decayed():
    vision = preset("davit_tiny").vision
    paths = ["norms/0/scale", "norms/3/bias", "decode_head/fusion/conv/kernel", "head/fc/kernel"]
    groups = assign_param_groups(paths, ((".*", 1.0),), vision, layer_decay=0.5)
    assert [groups[path].rate for path in paths] == [1.0] * 4
    assert [groups[path].decayed for path in paths] == [False, False, True, True]


def test_the_moving_average_past_its_warm_up_is_timm_s(stored):
    average = jnp.asarray(GIVEN["rows"][0])
    for row in GIVEN["rows"][1:]:
        # The warm-up ends where (1 + step) / (10 + step) reaches the decay.
        average = update_ema(average, jnp.asarray(row), timm.EMA_DECAY, jnp.int32(1000))
    np.testing.assert_allclose(average, stored["average"], rtol=1e-6)
