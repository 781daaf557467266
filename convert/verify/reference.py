"""transformers' native Florence-2 with the same weights as ours, for side-by-side runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from florence_jax.checkpoint import torch_tensors
from florence_jax.config import Florence2Config
from florence_jax.model import Params, random_params_with_spread_logits

if TYPE_CHECKING:
    from transformers import Florence2ForConditionalGeneration

__all__ = ["native_model", "random_params_with_spread_logits"]


# `<unk>`, which a byte-level tokenizer never produces.
UNUSED_TOKEN = 3


def native_model(config: Florence2Config, params: Params) -> Florence2ForConditionalGeneration:
    """transformers' float32 class holding `params`, in evaluation mode.

    Raises:
        CheckpointError: `params` are not a Florence-2's.
    """
    import torch
    from transformers import Florence2Config as NativeConfig
    from transformers import Florence2ForConditionalGeneration

    sizes = config.to_hf("native")
    if config.image_token_id >= config.text.vocab_size:
        # The original has no image placeholder; transformers needs one that it can look up.
        sizes["image_token_id"] = UNUSED_TOKEN
    reference = Florence2ForConditionalGeneration(NativeConfig(**sizes)).eval()

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.require(array, np.float32, ["C", "W"]))

    params = dict(params)
    bias = params.pop("final_logits_bias", None)
    tensors = torch_tensors(params, "native", tied_names=True)
    state = {name: tensor(array) for name, array in tensors}
    # assign: the module takes these tensors over instead of holding a second copy of the model.
    reference.load_state_dict(state, strict=True, assign=True)
    reference.tie_weights()
    if bias is not None:
        # The native class dropped the original's output bias; its head is a Linear and can hold it.
        reference.lm_head.bias = torch.nn.Parameter(tensor(bias), requires_grad=False)
    return reference
