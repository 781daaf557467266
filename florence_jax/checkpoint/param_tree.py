"""The parameter tree: paths, shapes from the config alone, and checks of a checkpoint against them.

"encoder/layers/0/fc1/kernel" names a leaf of the nested dict. `florence_jax.model.abstract_params`
gives the same shapes by building the model; a test compares the two. The shapes are written out
here because building the model imports jax and Flax and takes over a second, and this module serves
programs that need neither.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from florence_jax.checkpoint.errors import ErrorCollector, clip
from florence_jax.checkpoint.plan import Source
from florence_jax.checkpoint.pytorch.key_map import LM_HEAD, LOGITS_BIAS_PATH, SHARED, Shape
from florence_jax.config import PRESETS, BartConfig, DaViTConfig, Florence2Config

_Parameters = Iterator[tuple[str, Shape]]

# The position tables have two rows before position 0 (BART's offset).
POSITION_OFFSET = 2
# Far beyond any real model (the largest published size is 4,096), far below where building a
# position table or shape arithmetic hurts.
_MAX_SIZE = 1 << 16
_MAX_VOCABULARY = 1 << 24


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) of a nested dict, paths joined by "/"."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict of leaves by path, the reverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = leaf
    return tree


def param_shapes(config: Florence2Config) -> dict[str, Shape]:
    """Path in the parameter tree -> shape."""
    return dict(_florence2(config))


def check_sources(
    config: Florence2Config,
    sources: Mapping[str, Source],
    problems: ErrorCollector,
    torch_name: Callable[[str], str | None] | None = None,
) -> None:
    """Record every parameter that is missing, unexpected or of a shape that is not `config`'s.

    A config.json with a billion layers or positions is refused without expanding it.

    Args:
        config: the model.
        sources: the tensors by path.
        problems: collects what does not fit.
        torch_name: for tensors of a PyTorch checkpoint, the name in its naming of a path. Sizes on
            which these tensors and config.json disagree are recorded too.
    """
    noun = "parameters" if torch_name is None else "tensors"
    expected = None if _beyond_reason(config, len(sources), problems) else param_shapes(config)
    if torch_name is not None:
        _check_sizes(
            config, {path: source.shape or () for path, source in sources.items()}, problems
        )
    if expected is None:
        return
    for path in sorted(expected.keys() - sources.keys()):
        problems.add(f"missing {noun}", (torch_name and torch_name(path)) or path)
    for path, source in sources.items():
        if path not in expected:
            problems.add(f"{noun} that this config has no place for", source.tensor.name)
        elif source.shape != expected[path]:
            stored, wanted = list(source.tensor.shape), list(source.stored_shape(expected[path]))
            detail = f"is {clip(str(stored))}, expected {wanted}"
            problems.add(f"{noun} of the wrong shape", source.tensor.name, detail)


def _beyond_reason(config: Florence2Config, num_tensors: int, problems: ErrorCollector) -> bool:
    """Record sizes that no model has; whether there are any."""
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
    return bool(wrong) or layers > num_tensors


def _integers(name: str, value: Any) -> Iterator[tuple[str, int]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _integers(key, item)
    elif isinstance(value, tuple):
        for item in value:
            yield from _integers(name, item)
    elif isinstance(value, int):
        yield name, value


def _check_sizes(
    config: Florence2Config, shapes: Mapping[str, Shape], problems: ErrorCollector
) -> None:
    """Record the sizes on which `config` and the tensors disagree, and whose sizes they are.

    One line "d_model is 768, the tensors have 1024" explains 600 wrong shapes.
    """
    found = _tensor_sizes(shapes)
    declared = _config_sizes(config)
    wrong = [name for name, size in found.items() if size != declared[name]]
    for name in wrong:
        problems.add(
            "sizes on which config.json and the tensors disagree",
            name,
            f"config.json says {declared[name]}, the tensors have {found[name]}",
        )
    if wrong:
        presets = {name: _config_sizes(make()) for name, make in PRESETS.items()}
        fitting = [
            name
            for name, sizes in presets.items()
            if all(sizes[field] == size for field, size in found.items())
        ]
        owner = f"Florence-2 {fitting[0]}" if fitting else "another model size"
        problems.hint(f"the tensors are those of {owner}: use its config.json")


def _config_sizes(config: Florence2Config) -> dict[str, Any]:
    text, vision = config.text, config.vision
    return {
        "d_model": text.d_model,
        "max_position_embeddings": text.max_position_embeddings,
        "encoder_layers": text.encoder_layers,
        "decoder_layers": text.decoder_layers,
        "encoder_ffn_dim": text.encoder_ffn_dim,
        "decoder_ffn_dim": text.decoder_ffn_dim,
        "vision embed_dims": tuple(vision.embed_dims),
        "vision depths": tuple(vision.depths),
        "image positions": config.max_image_positions,
        "temporal positions": config.max_temporal_positions,
    }


def _tensor_sizes(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The same sizes, taken from the tensors; a size whose tensors are absent is left out."""

    def length(path: str, axis: int = 0) -> int | None:
        shape = shapes.get(path, ())
        return shape[axis] if len(shape) > axis else None

    def count(prefix: str) -> int:
        # The segment after the prefix is a layer number: key_map matched it as one.
        paths = (path[len(prefix) :] for path in shapes if path.startswith(prefix))
        return len({path.split("/")[0] for path in paths})

    stages = range(count("vision_tower/stages/"))
    dims = tuple(length(f"vision_tower/stages/{stage}/embed/conv/bias") for stage in stages)
    rows = length("encoder/positions")
    sizes = {
        "d_model": length(SHARED, axis=1),
        "max_position_embeddings": None if rows is None else rows - POSITION_OFFSET,
        "encoder_layers": count("encoder/layers/"),
        "decoder_layers": count("decoder/layers/"),
        "encoder_ffn_dim": length("encoder/layers/0/fc1/bias"),
        "decoder_ffn_dim": length("decoder/layers/0/fc1/bias"),
        "vision embed_dims": None if None in dims else dims,
        "vision depths": tuple(count(f"vision_tower/stages/{stage}/blocks/") for stage in stages),
        "image positions": length("projector/row_positions"),
        "temporal positions": length("projector/temporal_positions"),
    }
    return {name: size for name, size in sizes.items() if size is not None}


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
