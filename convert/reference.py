"""transformers' native Florence-2 with the same weights as ours, for side-by-side runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import numpy as np

from florence_jax.checkpoint import torch_tensors
from florence_jax.config import Florence2Config
from florence_jax.model import Params, abstract_params
from florence_jax.model.projector import cosine_positions

if TYPE_CHECKING:
    from transformers import Florence2ForConditionalGeneration


# `<unk>`, which a byte-level tokenizer never produces.
UNUSED_TOKEN = 3


def native_model(config: Florence2Config, params: Params) -> Florence2ForConditionalGeneration:
    """transformers' float32 class holding `params`, in evaluation mode.

    Raises:
        CheckpointError: the weights have a part that the native class has no place for.
    """
    import torch
    from transformers import Florence2Config as NativeConfig
    from transformers import Florence2ForConditionalGeneration

    sizes = config.to_hf("native")
    if config.image_token_id >= config.text.vocab_size:
        # The original has no image placeholder; transformers needs one that it can look up.
        sizes["image_token_id"] = UNUSED_TOKEN
    reference = Florence2ForConditionalGeneration(NativeConfig(**sizes)).eval()
    tensors = torch_tensors(params, "native", tied_names=True)
    state = {
        name: torch.from_numpy(np.require(array, np.float32, ["C", "W"])) for name, array in tensors
    }
    # assign: the module takes these tensors over instead of holding a second copy of the model.
    reference.load_state_dict(state, strict=True, assign=True)
    reference.tie_weights()
    return reference


def spread_params(config: Florence2Config, seed: int) -> Params:
    """Random float32 weights that leave nothing at zero and whose logits are far apart.

    The usual N(0, 0.02) makes near-uniform predictions, with which a token-exact comparison would
    test rounding and not the model.
    """
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

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config))
