"""Random weights with spread-out logits, for parity tests and benchmarks."""

from __future__ import annotations

import jax
import numpy as np

from florence_jax.config import Florence2Config
from florence_jax.model.model import Params, abstract_params
from florence_jax.model.projector import cosine_positions


def random_params_with_spread_logits(config: Florence2Config, seed: int) -> Params:
    """Random float32 weights without zeros, with logits that are far apart.

    The usual N(0, 0.02) makes near-uniform predictions, with which a token-exact comparison would
    test rounding and not the model.
    """
    return spread_params(abstract_params(config), seed)


def spread_params(abstract: Params, seed: int) -> Params:
    """The same for a tree of shapes."""
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name == "temporal_positions":
            return cosine_positions(*leaf.shape)
        array = rng.standard_normal(leaf.shape, np.float32)
        if name == "scale":
            return 1 + 0.1 * array
        if name in ("bias", "final_logits_bias"):
            return 0.1 * array
        if name == "kernel":
            # DaViT normalises its branches and not its maps: with unit gain, maps grow and scores
            # saturate from block to block until rounding decides the result.
            gain = 0.3 if any(entry.key == "blocks" for entry in path) else 1.0
            return array * np.float32(gain / np.sqrt(np.prod(leaf.shape[:-1])))
        if name in ("embedding", "positions"):
            return array * np.float32(4 / np.sqrt(leaf.shape[-1]))
        return array

    return jax.tree_util.tree_map_with_path(draw, abstract)
