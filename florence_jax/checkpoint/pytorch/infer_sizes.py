"""The sizes that a checkpoint's tensors imply, against those of its config.json.

One line "d_model is 768, the tensors have 1024" says what 600 wrong shapes mean.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from florence_jax.checkpoint.errors import ErrorCollector
from florence_jax.checkpoint.pytorch.detect import Source
from florence_jax.checkpoint.pytorch.key_map import SHARED
from florence_jax.config import PRESETS, Florence2Config

# The position tables have two rows before position 0 (BART's offset).
POSITION_OFFSET = 2
# Far beyond any real model (the largest published size is 4,096), far below where building a
# position table or shape arithmetic hurts.
_MAX_SIZE = 1 << 16
_MAX_VOCABULARY = 1 << 24


def check_sizes(
    config: Florence2Config, sources: dict[str, Source], problems: ErrorCollector
) -> None:
    """Record the sizes on which `config` and the tensors disagree, and whose sizes they are."""
    found = _tensor_sizes(sources)
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


def check_reason(config: Florence2Config, num_tensors: int, problems: ErrorCollector) -> bool:
    """Record sizes that no model has; is `config` small enough to list its parameters?

    A config.json of a billion layers or positions must not be expanded to say that it does not fit.
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
    return not wrong and layers <= num_tensors


def _integers(name: str, value: Any) -> Iterator[tuple[str, int]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _integers(key, item)
    elif isinstance(value, tuple):
        for item in value:
            yield from _integers(name, item)
    elif isinstance(value, int):
        yield name, value


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


def _tensor_sizes(sources: dict[str, Source]) -> dict[str, Any]:
    """The same sizes read off the tensors; a size whose tensors are absent is left out."""

    def length(path: str, axis: int = 0) -> int | None:
        shape = sources[path].tensor.shape if path in sources else ()
        return shape[axis] if len(shape) > axis else None

    def count(prefix: str) -> int:
        # The segment after the prefix is a layer number: the keymap matched it as one.
        paths = (path[len(prefix) :] for path in sources if path.startswith(prefix))
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
