"""Every intermediate result of one forward pass, from this implementation and from transformers'.

Both functions take the same numpy inputs and return arrays of the same shapes under the same names,
in the order of computation:
`vision/stage{s}`, `projector`, `encoder/embeddings`, `encoder/layer{i}`, `decoder/...`, `logits`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np

from convert.reference import UNUSED_TOKEN
from florence_jax.config import Florence2Config
from florence_jax.model import Model, Params

if TYPE_CHECKING:
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


def jax_stages(model: Model, params: Params, inputs: Inputs) -> Stages:
    """Run `model` at the caller's matmul precision and keep every stage."""
    outputs = _forward(
        model,
        params,
        inputs.pixel_values,
        inputs.input_ids,
        inputs.attention_mask,
        inputs.decoder_input_ids,
    )
    # jit returns dicts sorted by key; the names in order of computation come from the trace.
    return {name: np.asarray(outputs[name], np.float32) for name in _stage_names(model)}


def torch_stages(reference: Florence2ForConditionalGeneration, inputs: Inputs) -> Stages:
    """Run transformers' native class, in its own dtype, and keep every stage, channels last."""
    import torch

    stages: Stages = {}
    handles = []

    def keep(name: str, module: torch.nn.Module, channels_first: bool = False) -> None:
        def hook(_module, _inputs, output):
            value = (output[0] if isinstance(output, tuple) else output).detach().double().numpy()
            stages[name] = np.moveaxis(value, 1, -1) if channels_first else value

        handles.append(module.register_forward_hook(hook))

    core = reference.model
    for number, blocks in enumerate(core.vision_tower.blocks):
        keep(f"vision/stage{number}", blocks[-1], channels_first=True)
    keep("projector", core.multi_modal_projector)
    for side in ("encoder", "decoder"):
        stack = getattr(core.language_model, side)
        keep(f"{side}/embeddings", stack.layernorm_embedding)
        for number, layer in enumerate(stack.layers):
            keep(f"{side}/layer{number}", layer)
    keep("logits", reference.lm_head)

    config = Florence2Config.from_hf(reference.config.to_dict())
    images = config.num_image_tokens(*inputs.pixel_values.shape[1:3])
    batch = inputs.input_ids.shape[0]
    placeholder = np.full((batch, images), reference.config.image_token_id)
    ones = np.ones((batch, images), np.int64)
    try:
        with torch.no_grad():
            reference(
                pixel_values=torch.tensor(np.moveaxis(inputs.pixel_values, -1, 1)).to(
                    reference.dtype
                ),
                input_ids=torch.tensor(np.concatenate([placeholder, inputs.input_ids], 1)).long(),
                attention_mask=torch.tensor(
                    np.concatenate([ones, inputs.attention_mask], 1)
                ).long(),
                decoder_input_ids=torch.tensor(inputs.decoder_input_ids).long(),
            )
    finally:
        for handle in handles:
            handle.remove()
    return stages


def compare(ours: Stages, reference: Stages, mask: np.ndarray) -> dict[str, float]:
    """Largest absolute difference of each stage; padded encoder rows (mask 0) do not count."""
    errors = {}
    for name, expected in reference.items():
        difference = np.abs(ours[name] - expected)
        if name.startswith("encoder/"):
            images = difference.shape[1] - mask.shape[1]
            attended = np.pad(mask.astype(bool), ((0, 0), (images, 0)), constant_values=True)
            difference = difference[attended]
        errors[name] = float(difference.max())
    return errors


@functools.partial(jax.jit, static_argnums=0)
def _forward(model: Model, params: Params, pixels, input_ids, attention_mask, decoder_input_ids):
    return dict(_trace(model, params, pixels, input_ids, attention_mask, decoder_input_ids))


def _trace(model: Model, params: Params, pixels, input_ids, attention_mask, decoder_input_ids):
    module = model.bind(params)
    maps = None
    for number, maps in enumerate(module.vision_tower.stage_outputs(pixels.astype(module.dtype))):
        yield f"vision/stage{number}", maps
    assert maps is not None, "a DaViT has at least one stage"
    image_features = module.projector(maps[:, None])
    yield "projector", image_features
    embeds, mask = module.join(image_features, input_ids, attention_mask)
    memory = embeds
    for name, memory in _named("encoder", module.encoder.layer_outputs(embeds, mask)):
        yield name, memory
    targets = module.embed(decoder_input_ids)
    hidden = targets
    for name, hidden in _named("decoder", module.decoder.layer_outputs(targets, memory, mask)):
        yield name, hidden
    yield "logits", module.unembed(hidden)


def _named(side: str, outputs):
    for number, output in enumerate(outputs):
        yield f"{side}/{f'layer{number - 1}' if number else 'embeddings'}", output


def _stage_names(model: Model) -> list[str]:
    text = model.config.text
    sides = [("encoder", text.encoder_layers), ("decoder", text.decoder_layers)]
    return [
        *(f"vision/stage{number}" for number in range(len(model.config.vision.depths))),
        "projector",
        *(
            f"{side}/{name}"
            for side, depth in sides
            for name in ["embeddings", *(f"layer{number}" for number in range(depth))]
        ),
        "logits",
    ]
