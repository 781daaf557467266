"""The same shapes never compile twice, and blocks that are alike are traced once."""

import dataclasses
import re

import jax
import jax.numpy as jnp

from florence_jax import config as configs
from florence_jax.model import Model
from florence_jax.model import model as handle
from florence_jax.model.davit import DualBlock
from florence_jax.model.model import abstract_params
from tests.small_model import small_model_config


def test_new_weights_and_images_reuse_the_program():
    config = small_model_config()
    params = Model(config=config).init(jax.random.key(0))
    before = handle._encode_image._cache_size()
    for seed in range(3):
        # A handle of its own each time: equal configs are one static argument.
        model = Model(config=small_model_config())
        pixels = jax.random.normal(jax.random.key(seed), (1, 40, 40, 3))
        model.encode_image(model.init(jax.random.key(seed)), pixels)
    assert handle._encode_image._cache_size() == before + 1
    model.encode_image(params, jnp.zeros((2, 40, 40, 3)))
    assert handle._encode_image._cache_size() == before + 2


def test_blocks_that_differ_in_weights_alone_are_traced_once(monkeypatch):
    config = configs.tiny()
    config = dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, depths=(1, 1, 4, 1), drop_path_rate=0.3)
    )
    traced, block = [], DualBlock.__call__

    def watched(self, *arguments):
        traced.append(arguments[0].shape)
        return block(self, *arguments)

    monkeypatch.setattr(DualBlock, "__call__", watched)
    pixels = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = abstract_params(config)
    lowered = handle._encode_image.lower(Model(config=config), params, pixels)
    assert len(traced) == 4, "one for each stage's shape"
    calls = re.findall(r"call @(_call\w*)\(", lowered.as_text())
    assert len(calls) == 1 + 1 + 4 + 1
    assert len(set(calls)) == 4
    # XLA inlines them again: what runs is what seven different blocks would be.
    assert not re.search(r"call\(.*jit__call", lowered.compile().as_text())
