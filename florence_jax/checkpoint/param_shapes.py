"""Every parameter's path and shape, from the config alone, and checks of a checkpoint against them.

`florence_jax.model.abstract_params` gives the same shapes by building the model; a test compares
the two. The shapes are written out here because building the model imports jax and Flax and takes
over a second, and this module serves programs that need neither.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from florence_jax.checkpoint.errors import ErrorCollector, clip
from florence_jax.checkpoint.pytorch.key_map import LM_HEAD, LOGITS_BIAS_PATH, SHARED
from florence_jax.checkpoint.pytorch.transforms import Shape
from florence_jax.config import BartConfig, DaViTConfig, Florence2Config

_Parameters = Iterator[tuple[str, Shape]]

# The position tables have two rows before position 0 (BART's offset).
POSITION_OFFSET = 2
# Far beyond any real model (the largest published size is 4,096), far below where building a
# position table or shape arithmetic hurts.
_MAX_SIZE = 1 << 16
_MAX_VOCABULARY = 1 << 24


def param_shapes(config: Florence2Config) -> dict[str, Shape]:
    """Path in the parameter tree ("encoder/layers/0/fc1/kernel") -> shape."""
    return dict(_florence2(config))


def check_parameters(
    config: Florence2Config, shapes: Mapping[str, Shape], problems: ErrorCollector
) -> None:
    """Record every parameter that is missing, unexpected or of a shape that is not `config`'s."""
    expected = checked_shapes(config, len(shapes), problems)
    if expected is None:
        return
    for path in sorted(expected.keys() - shapes.keys()):
        problems.add("missing parameters", path)
    for path, shape in shapes.items():
        if path not in expected:
            problems.add("parameters that this config has no place for", path)
        elif shape != expected[path]:
            problems.add(
                "parameters of the wrong shape",
                path,
                f"is {clip(str(list(shape)))}, expected {list(expected[path])}",
            )


def checked_shapes(
    config: Florence2Config, num_tensors: int, problems: ErrorCollector
) -> dict[str, Shape] | None:
    """`param_shapes`, or None where `config` has sizes that no model has, which are recorded.

    A config.json with a billion layers or positions must not be expanded just to be refused.
    """
    heading = "sizes beyond reason"
    layers = sum(config.vision.depths) + config.text.encoder_layers + config.text.decoder_layers
    wrong: list[tuple[str, float, int]] = [
        (name, size, limit)
        for name, size in _integers("config.json", dataclasses.asdict(config))
        if abs(size) > (limit := _MAX_VOCABULARY if name == "vocab_size" else _MAX_SIZE)
    ]
    # JSON's Infinity and 1e400 are numbers above 0, too.
    if config.vision.mlp_ratio > _MAX_SIZE:
        wrong.append(("mlp_ratio", config.vision.mlp_ratio, _MAX_SIZE))
    for name, size, limit in wrong:
        problems.add(heading, name, f"config.json says {size}, at most {limit} is supported")
    if layers > num_tensors:
        problems.add(heading, "layers", f"{layers} in config.json, for {num_tensors} tensors")
    return None if wrong or layers > num_tensors else param_shapes(config)


def _integers(name: str, value: Any) -> Iterator[tuple[str, int]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _integers(key, item)
    elif isinstance(value, tuple):
        for item in value:
            yield from _integers(name, item)
    elif isinstance(value, int):
        yield name, value


def _florence2(config: Florence2Config) -> _Parameters:
    text = config.text
    yield from _davit(config.vision)
    yield from _projector(config)
    yield SHARED, (text.vocab_size, text.d_model)
    if not config.tie_word_embeddings:
        yield LM_HEAD, (text.vocab_size, text.d_model)
    if config.final_logits_bias:
        yield LOGITS_BIAS_PATH, (text.vocab_size,)
    yield from _stack("encoder", text, text.encoder_layers, text.encoder_ffn_dim, ("self_attn",))
    yield from _stack(
        "decoder", text, text.decoder_layers, text.decoder_ffn_dim, ("self_attn", "cross_attn")
    )


def _davit(config: DaViTConfig) -> _Parameters:
    before = config.in_channels
    for stage, (dim, depth) in enumerate(zip(config.embed_dims, config.depths, strict=True)):
        path, size = f"vision_tower/stages/{stage}", config.patch_sizes[stage]
        yield f"{path}/embed/conv/kernel", (size, size, before, dim)
        yield f"{path}/embed/conv/bias", (dim,)
        yield from _norm(f"{path}/embed/norm", before if config.patch_prenorm[stage] else dim)
        for block in range(depth):
            for kind, attention in (("spatial", "window_attn"), ("channel", "channel_attn")):
                yield from _davit_block(f"{path}/blocks/{block}/{kind}", attention, dim, config)
        before = dim


def _davit_block(path: str, attention: str, dim: int, config: DaViTConfig) -> _Parameters:
    for number in (1, 2):
        yield f"{path}/conv{number}/kernel", (3, 3, 1, dim)
        yield f"{path}/conv{number}/bias", (dim,)
        yield from _norm(f"{path}/norm{number}", dim)
    hidden = int(dim * config.mlp_ratio)
    yield from _linear(f"{path}/{attention}/qkv", dim, 3 * dim, bias=config.qkv_bias)
    yield from _linear(f"{path}/{attention}/proj", dim, dim)
    yield from _linear(f"{path}/mlp/fc1", dim, hidden)
    yield from _linear(f"{path}/mlp/fc2", hidden, dim)


def _projector(config: Florence2Config) -> _Parameters:
    dim, positions = config.vision.embed_dims[-1], config.max_image_positions
    yield "projector/row_positions", (positions, dim // 2)
    yield "projector/column_positions", (positions, math.ceil(dim / 2))
    yield "projector/temporal_positions", (config.max_temporal_positions, dim)
    yield from _linear("projector/proj", dim, config.text.d_model, bias=False)
    yield from _norm("projector/norm", config.text.d_model)


def _stack(
    path: str, config: BartConfig, layers: int, hidden: int, attentions: tuple[str, ...]
) -> _Parameters:
    dim = config.d_model
    yield f"{path}/positions", (config.max_position_embeddings + POSITION_OFFSET, dim)
    yield from _norm(f"{path}/embedding_norm", dim)
    for number in range(layers):
        layer = f"{path}/layers/{number}"
        for attention in attentions:
            for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                yield from _linear(f"{layer}/{attention}/{projection}", dim, dim)
            yield from _norm(f"{layer}/{attention}_norm", dim)
        yield from _linear(f"{layer}/fc1", dim, hidden)
        yield from _linear(f"{layer}/fc2", hidden, dim)
        yield from _norm(f"{layer}/final_norm", dim)


def _linear(path: str, inputs: int, outputs: int, *, bias: bool = True) -> _Parameters:
    yield f"{path}/kernel", (inputs, outputs)
    if bias:
        yield f"{path}/bias", (outputs,)


def _norm(path: str, dim: int) -> _Parameters:
    yield f"{path}/scale", (dim,)
    yield f"{path}/bias", (dim,)
