"""The model as ONNX graphs: image tower, encoder, cross-attention keys and values, decoder step.

Shapes: B rows, K beams, M encoder tokens, T cached tokens, D model, N heads, E channels of a head,
        V vocabulary.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.rivals.engines.transformers_native import load_model
from tests.benchmarks.rivals.settings import NUM_BEAMS, PROMPT_TOKENS, Settings

GRAPHS = ("vision", "encoder", "cross", "step")
_EXAMPLE_CACHED = 5


def export_graph(settings: Settings, name: str, batch: int) -> Path:
    """The file of one graph for `batch` rows, exported unless an earlier run has done so.

    Inputs and outputs, all floats in `settings.dtype` but for the log-probabilities:
        vision: pixels [B, 3, S, S] -> [B, I, D].
        encoder: embeds [B, M, D] -> [B, M, D].
        cross: memory [B, M, D] -> keys and values of each layer, [B, N, M, E].
        step: tokens int64[B, K], position int64[1], parents int64[B, K], each layer's own keys and
            values [B, K, N, T, E], then `cross`'s -> log-probabilities float32[B, K, V] and the
            caches with one more token. K and T are free; beams of a row share its memory.
    """
    folder = Path(settings.cache) / f"onnx-{settings.image_size}px-{settings.dtype}-b{batch}" / name
    file = folder / "graph.onnx"
    if file.exists():
        return file
    import torch

    # Traced on the CPU whatever will run it.
    model = load_model(settings, "eager").cpu()
    module, arguments, names, free = _BUILDERS[name](model, settings, batch)
    partial = folder.with_name(name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with torch.no_grad():
        torch.onnx.export(
            module.eval(),
            arguments,
            str(partial / file.name),
            input_names=names,
            dynamic_shapes=free,
            dynamo=True,
            external_data=True,
            verbose=False,
        )
    partial.rename(folder)
    return file


def _vision(model: Any, settings: Settings, batch: int) -> tuple:
    import torch

    class Vision(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core = model.model

        def forward(self, pixels: Any) -> Any:
            return self.core.multi_modal_projector(self.core.vision_tower(pixels).last_hidden_state)

    side = settings.image_size
    pixels = torch.zeros((batch, 3, side, side), dtype=model.dtype)
    return Vision(), (pixels,), ["pixels"], None


def _encoder(model: Any, settings: Settings, batch: int) -> tuple:
    import torch

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = model.model.language_model.encoder

        def forward(self, embeds: Any) -> Any:
            return self.encoder(inputs_embeds=embeds).last_hidden_state

    return Encoder(), (_memory(model, settings, batch),), ["embeds"], None


def _cross(model: Any, settings: Settings, batch: int) -> tuple:
    import torch

    class Cross(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = model.model.language_model.decoder.layers

        def forward(self, memory: Any) -> Any:
            outputs = []
            for layer in self.layers:
                attention = layer.encoder_attn
                for project in (attention.k_proj, attention.v_proj):
                    split = project(memory).unflatten(-1, (attention.num_heads, -1))
                    outputs.append(split.transpose(1, 2))
            return tuple(outputs)

    return Cross(), (_memory(model, settings, batch),), ["memory"], None


def _step(model: Any, settings: Settings, batch: int) -> tuple:
    import torch

    decoder, head = model.model.language_model.decoder, model.lm_head
    layers = len(decoder.layers)

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder, self.head = decoder, head

        def forward(self, tokens: Any, position: Any, parents: Any, *caches: Any) -> Any:
            own, cross = caches[: 2 * layers], caches[2 * layers :]
            beams = tokens.shape[1]
            rows = (parents + torch.arange(batch)[:, None] * beams).flatten()
            x = self.decoder.embed_tokens(tokens)
            places = self.decoder.embed_positions
            x = x + torch.nn.functional.embedding(position + places.offset, places.weight)
            x = self.decoder.layernorm_embedding(x)
            kept = []
            for number, layer in enumerate(self.decoder.layers):
                attention = layer.self_attn
                query, new_key, new_value = (
                    project(x).unflatten(-1, (attention.num_heads, -1)).unsqueeze(3)
                    for project in (attention.q_proj, attention.k_proj, attention.v_proj)
                )
                key, value = (
                    torch.cat([old.flatten(0, 1)[rows].view(old.shape), new], dim=3)
                    for old, new in zip(
                        own[2 * number : 2 * number + 2], (new_key, new_value), strict=True
                    )
                )
                kept += [key, value]
                y = attention.out_proj(_attend(query, key, value).flatten(2))
                x = layer.self_attn_layer_norm(x + y)
                attention = layer.encoder_attn
                query = attention.q_proj(x).unflatten(-1, (attention.num_heads, -1))
                y = _attend(query.transpose(1, 2), cross[2 * number], cross[2 * number + 1])
                x = layer.encoder_attn_layer_norm(
                    x + attention.out_proj(y.transpose(1, 2).flatten(2))
                )
                y = layer.fc2(torch.nn.functional.gelu(layer.fc1(x)))
                x = layer.final_layer_norm(x + y)
            return self.head(x).float().log_softmax(-1), *kept

    heads = decoder.layers[0].self_attn.num_heads
    width = model.config.text_config.d_model // heads
    memory = _memory(model, settings, batch).shape[1]
    # Each a tensor of its own: the exporter takes equal ones for one input.
    own = [
        torch.zeros((batch, NUM_BEAMS, heads, _EXAMPLE_CACHED, width), dtype=model.dtype)
        for _ in range(2 * layers)
    ]
    cross = [
        torch.zeros((batch, heads, memory, width), dtype=model.dtype) for _ in range(2 * layers)
    ]
    tokens, parents = (torch.zeros((batch, NUM_BEAMS), dtype=torch.int64) for _ in range(2))
    position = torch.full((1,), _EXAMPLE_CACHED)
    arguments = (tokens, position, parents, *own, *cross)
    names = ["tokens", "position", "parents"]
    names += [f"own_{number}" for number in range(2 * layers)]
    names += [f"cross_{number}" for number in range(2 * layers)]
    beams, cached = torch.export.Dim("beams", min=1, max=64), torch.export.Dim("cached", max=4096)
    free = (
        {1: beams},
        None,
        {1: beams},
        (*[{1: beams, 3: cached}] * 2 * layers, *[None] * 2 * layers),
    )
    return Step(), arguments, names, free


def _attend(query: Any, key: Any, value: Any) -> Any:
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return scores.float().softmax(-1).to(value.dtype) @ value


def _memory(model: Any, settings: Settings, batch: int) -> Any:
    import torch

    side = settings.image_size
    length = settings.model_config().num_image_tokens(side, side) + PROMPT_TOKENS
    return torch.zeros((batch, length, model.config.text_config.d_model), dtype=model.dtype)


_BUILDERS: dict[str, Callable[[Any, Settings, int], tuple]] = {
    "vision": _vision,
    "encoder": _encoder,
    "cross": _cross,
    "step": _step,
}
