"""Florence-2 as Flax NNX modules, and `Model`, the functional handle on them."""

from florence_jax.model.florence2 import Florence2
from florence_jax.model.model import Model, Params, abstract_params
from florence_jax.model.random_params import random_params_with_spread_logits

__all__ = ["Florence2", "Model", "Params", "abstract_params", "random_params_with_spread_logits"]
