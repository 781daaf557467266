"""The same shapes never compile twice."""

import jax
import jax.numpy as jnp

from florence_jax import config as configs
from florence_jax.model import Model, handle


def test_new_weights_and_images_reuse_the_program():
    config = configs.tiny()
    params = Model(config=config).init(jax.random.key(0))
    before = handle._encode_image._cache_size()
    for seed in range(3):
        # A handle of its own each time: equal configs are one static argument.
        model = Model(config=configs.tiny())
        pixels = jax.random.normal(jax.random.key(seed), (1, 40, 40, 3))
        model.encode_image(model.init(jax.random.key(seed)), pixels)
    assert handle._encode_image._cache_size() == before + 1
    model.encode_image(params, jnp.zeros((2, 40, 40, 3)))
    assert handle._encode_image._cache_size() == before + 2
