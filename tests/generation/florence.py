"""The same Florence-2 generating in transformers and here, for side-by-side tests."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from transformers import GenerationConfig as TorchGenerationConfig

from convert.verify.reference import native_model, random_params_with_spread_logits
from florence_jax.generation import Constraint, GenerateOutput, GenerationConfig, generate
from florence_jax.model import Model
from tests.generation.table_model import torch_arguments, unpack_torch
from tests.small_model import small_model_config

# A draw may be skipped when transformers itself changes its tokens under noise of this size in the
# logits: the two best choices were closer than float32 arithmetic can tell apart.
MARGIN = 1e-4


@dataclasses.dataclass
class Pair:
    """Our model and transformers', with equal weights."""

    model: Model
    params: dict
    reference: torch.nn.Module


@dataclasses.dataclass
class Prompts:
    pixel_values: np.ndarray  # float32[B, H, W, 3]
    input_ids: np.ndarray  # int32[B, L]
    attention_mask: np.ndarray  # int32[B, L]


def random_pair(seed: int, **text) -> Pair:
    """A random small Florence-2 with spread-out logits that likes to stop."""
    sizes = {"vocab_size": 48, "max_position_embeddings": 128, "decoder_layers": 2} | text
    config = dataclasses.replace(
        small_model_config(**sizes), image_token_id=sizes["vocab_size"] - 1
    )
    params = random_params_with_spread_logits(config, seed)
    # Larger swings of its logit make `</s>` sometimes the best token, as it is in trained models.
    params["shared"]["embedding"][config.text.eos_token_id] *= 1.5
    reference = native_model(config, params)
    # transformers would fill every setting that a test leaves at None from here.
    reference.generation_config = TorchGenerationConfig()
    return Pair(Model(config=config), params, reference)


def random_prompts(pair: Pair, seed: int, *, batch: int, length: int, size: int = 64) -> Prompts:
    """Prompts of mixed lengths, the first one unpadded."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, length + 1, batch)
    lengths[0] = length
    mask = np.arange(length) < lengths[:, None]
    ids = rng.integers(3, pair.model.config.image_token_id, (batch, length))
    return Prompts(
        pixel_values=rng.standard_normal((batch, size, size, 3)).astype(np.float32),
        input_ids=np.where(mask, ids, pair.model.config.text.pad_token_id).astype(np.int32),
        attention_mask=mask.astype(np.int32),
    )


def generate_ours(
    pair: Pair, prompts: Prompts, config: GenerationConfig, constraint: Constraint | None = None
) -> GenerateOutput:
    return generate(
        pair.model,
        pair.params,
        # From features: the image tower would be compiled again for each kind of decoding.
        image_features=pair.model.encode_image(pair.params, prompts.pixel_values),
        input_ids=prompts.input_ids,
        attention_mask=prompts.attention_mask,
        config=config,
        constraint=constraint,
    )


def torch_inputs(pair: Pair, prompts: Prompts) -> dict:
    """transformers' inputs: channels first, image placeholders in front of the prompt."""
    config = pair.model.config
    batch, height, width, _ = prompts.pixel_values.shape
    images = np.full((batch, config.num_image_tokens(height, width)), config.image_token_id)
    ids = np.concatenate([images, prompts.input_ids], axis=1)
    mask = np.concatenate([np.ones_like(images), prompts.attention_mask], axis=1)
    return {
        "input_ids": torch.from_numpy(ids).long(),
        "attention_mask": torch.from_numpy(mask).long(),
        "pixel_values": torch.from_numpy(np.moveaxis(prompts.pixel_values, -1, 1).copy()),
    }


def generate_reference(pair: Pair, prompts: Prompts, config: GenerationConfig, **arguments):
    """(sequences, sequence scores or None, token scores), in numpy.

    `arguments` go to transformers' `generate` as they are.
    """
    out = pair.reference.generate(
        **torch_inputs(pair, prompts),
        generation_config=TorchGenerationConfig(
            **torch_arguments(config), return_dict_in_generate=True, output_scores=True
        ),
        **arguments,
    )
    return unpack_torch(pair.reference, out, config.num_beams)


def reference_is_undecided(
    pair: Pair, prompts: Prompts, config: GenerationConfig, **arguments
) -> bool:
    """Whether noise of size MARGIN in the logits changes transformers' own tokens."""
    expected = generate_reference(pair, prompts, config, **arguments)[0]
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)

        def disturb(_module, _args, logits, generator=generator):
            return logits + MARGIN * (2 * torch.rand(logits.shape, generator=generator) - 1)

        handle = pair.reference.lm_head.register_forward_hook(disturb)
        try:
            disturbed = generate_reference(pair, prompts, config, **arguments)[0]
        finally:
            handle.remove()
        if disturbed.shape != expected.shape or (disturbed != expected).any():
            return True
    return False
