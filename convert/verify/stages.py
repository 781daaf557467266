"""Collect every intermediate result of a forward pass, here and in transformers.

Both functions take the same numpy inputs and return arrays of the same shapes under the same names,
in the order of computation: `vision/stage{s}/embed`, `vision/stage{s}/block{b}/spatial` and
`.../channel`, `vision/stage{s}` (its last block's output again), `projector`, `encoder/embeddings`,
`encoder/layer{i}`, `decoder/...`, `logits`.

By default a stage works on what the stages before it gave, and errors add up. With `given`, it
works on the given outputs of those before it, and its error is its own.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from convert.verify.reference import UNUSED_TOKEN
from florence_jax.config import Florence2Config
from florence_jax.matmul_precision import at_model_precision
from florence_jax.model import Model, Params

if TYPE_CHECKING:
    import torch
    from transformers import Florence2ForConditionalGeneration

Stages = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """One batch for both implementations.

    Attributes:
        pixel_values: float32[B, H, W, 3], normalised.
        input_ids: int32[B, L], the text tokens alone.
        attention_mask: int32[B, L], zero where a prompt is padded.
        decoder_input_ids: int32[B, T].
    """

    pixel_values: np.ndarray
    input_ids: np.ndarray
    attention_mask: np.ndarray
    decoder_input_ids: np.ndarray


def random_inputs(
    model: Model, *, batch: int, size: tuple[int, int], text: int, target: int, seed: int
) -> Inputs:
    """Standard normal pixels, random tokens, and prompts of differing lengths (height, width)."""
    rng = np.random.default_rng(seed)
    config = model.config
    # transformers would take its image placeholder, or the stand-in for it, for an image token.
    vocabulary = min(config.text.vocab_size, config.image_token_id)
    mask = np.ones((batch, text), np.int32)
    for row in range(1, batch):
        mask[row, text - row % max(text // 2, 1) :] = 0
    ids = rng.integers(UNUSED_TOKEN + 1, vocabulary, (batch, text))
    decoder = rng.integers(UNUSED_TOKEN + 1, vocabulary, (batch, target))
    decoder[:, 0] = config.text.decoder_start_token_id
    return Inputs(
        pixel_values=rng.standard_normal((batch, *size, 3)).astype(np.float32),
        input_ids=np.where(mask, ids, config.text.pad_token_id).astype(np.int32),
        attention_mask=mask,
        decoder_input_ids=decoder.astype(np.int32),
    )


def jax_stages(model: Model, params: Params, inputs: Inputs, given: Stages | None = None) -> Stages:
    """Run `model` and keep every stage, float32."""
    if given is not None:
        given = {name: np.asarray(value, jnp.dtype(model.dtype)) for name, value in given.items()}
    outputs = _forward(
        model,
        params,
        inputs.pixel_values,
        inputs.input_ids,
        inputs.attention_mask,
        inputs.decoder_input_ids,
        given,
    )
    # jit returns dicts sorted by key; the names in order of computation come from the trace.
    return {name: np.asarray(outputs[name], np.float32) for name in _stage_names(model)}


def torch_stages(
    reference: Florence2ForConditionalGeneration, inputs: Inputs, given: Stages | None = None
) -> Stages:
    """Run transformers' native class, in its own dtype, and keep every stage, channels last.

    Halves are given as float32, which holds them.
    """
    import torch

    stages: Stages = {}
    handles = []

    def keep(name: str, module: torch.nn.Module, channels_first: bool = False) -> None:
        def hook(_module, _inputs, output):
            found = output[0] if isinstance(output, tuple) else output
            value = (found if found.dtype == torch.float64 else found.float()).cpu().numpy()
            stages[name] = np.moveaxis(value, 1, -1) if channels_first else value
            if given is None:
                return None
            value = np.moveaxis(given[name], -1, 1) if channels_first else given[name]
            follow = torch.tensor(value).to(found)
            # What a hook returns takes the place of the module's output.
            return (follow, *output[1:]) if isinstance(output, tuple) else follow

        handles.append(module.register_forward_hook(hook))

    core: Any = reference.model
    tower = core.vision_tower
    for number, (embed, blocks) in enumerate(zip(tower.convs, tower.blocks, strict=True)):
        stage = f"vision/stage{number}"
        keep(f"{stage}/embed", embed, channels_first=True)
        for index, block in enumerate(blocks):
            keep(f"{stage}/block{index}/spatial", block.spatial_block, channels_first=True)
            keep(f"{stage}/block{index}/channel", block.channel_block, channels_first=True)
        keep(stage, blocks[-1], channels_first=True)
    keep("projector", core.multi_modal_projector)
    for side in ("encoder", "decoder"):
        stack = getattr(core.language_model, side)
        keep(f"{side}/embeddings", stack.layernorm_embedding)
        for number, layer in enumerate(stack.layers):
            keep(f"{side}/layer{number}", layer)
    keep("logits", reference.lm_head)

    try:
        with torch.no_grad():
            reference(
                **torch_inputs(reference, inputs),
                decoder_input_ids=torch.tensor(inputs.decoder_input_ids)
                .long()
                .to(reference.device),
            )
    finally:
        for handle in handles:
            handle.remove()
    return stages


def torch_inputs(
    reference: Florence2ForConditionalGeneration, inputs: Inputs
) -> dict[str, torch.Tensor]:
    """transformers' form of the encoder's inputs: channels first, placeholders for the image."""
    import torch

    config = Florence2Config.from_hf(reference.config.to_dict())
    images = config.num_image_tokens(*inputs.pixel_values.shape[1:3])
    batch = inputs.input_ids.shape[0]
    placeholder = np.full((batch, images), reference.config.image_token_id)
    ones = np.ones((batch, images), np.int64)
    pixels = torch.tensor(np.moveaxis(inputs.pixel_values, -1, 1))
    ids = torch.tensor(np.concatenate([placeholder, inputs.input_ids], 1)).long()
    mask = torch.tensor(np.concatenate([ones, inputs.attention_mask], 1)).long()
    return {
        "pixel_values": pixels.to(reference.device, reference.dtype),
        "input_ids": ids.to(reference.device),
        "attention_mask": mask.to(reference.device),
    }


def attended(name: str, stage: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A stage without the padded rows (mask 0) of the encoder's, which do not count."""
    if not name.startswith("encoder/"):
        return stage
    images = stage.shape[1] - mask.shape[1]
    return stage[np.pad(mask.astype(bool), ((0, 0), (images, 0)), constant_values=True)]


@functools.partial(jax.jit, static_argnums=0)
@at_model_precision
def _forward(
    model: Model, params: Params, pixels, input_ids, attention_mask, decoder_input_ids, given
) -> dict[str, jax.Array]:
    """The model's forward pass, taken apart into its stages."""
    module = model.bind(params)
    outputs: dict[str, jax.Array] = {}

    def keep(name: str, value: jax.Array) -> jax.Array:
        outputs[name] = value
        return value if given is None else given[name]

    maps = pixels.astype(module.dtype)
    for number, stage in enumerate(module.vision_tower.stages):
        name = f"vision/stage{number}"
        maps = keep(f"{name}/embed", stage.embed(maps))
        for index, block in enumerate(stage.blocks):
            maps = keep(f"{name}/block{index}/spatial", block.spatial(maps))
            maps = keep(f"{name}/block{index}/channel", block.channel(maps))
        maps = keep(name, maps)
    image_features = keep("projector", module.projector(maps[:, None]))

    embeds, mask = module.merge_embeddings(image_features, module.embed(input_ids), attention_mask)
    hidden_states = keep("encoder/embeddings", next(module.encoder.layer_outputs(embeds, mask)))
    for number, layer in enumerate(module.encoder.layers):
        hidden_states = keep(f"encoder/layer{number}", layer(hidden_states, mask))

    targets = module.embed(decoder_input_ids)
    hidden = next(module.decoder.layer_outputs(targets, hidden_states, mask))
    hidden = keep("decoder/embeddings", hidden)
    for number, layer in enumerate(module.decoder.layers):
        hidden = layer(hidden, layer.cross_attn.key_value(hidden_states), mask)
        hidden = keep(f"decoder/layer{number}", hidden)
    keep("logits", module.unembed(hidden))
    return outputs


def _stage_names(model: Model) -> list[str]:
    text = model.config.text
    names = []
    for number, depth in enumerate(model.config.vision.depths):
        stage = f"vision/stage{number}"
        blocks = [f"{stage}/block{index}" for index in range(depth)]
        halves = [f"{block}/{half}" for block in blocks for half in ("spatial", "channel")]
        names += [f"{stage}/embed", *halves, stage]
    names.append("projector")
    for side, depth in (("encoder", text.encoder_layers), ("decoder", text.decoder_layers)):
        names += [f"{side}/embeddings", *(f"{side}/layer{number}" for number in range(depth))]
    return [*names, "logits"]
