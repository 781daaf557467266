"""Match a PyTorch checkpoint's tensors to the parameters of its config; nothing is allocated yet.

One line "d_model is 768, the tensors have 1024" says what 600 wrong shapes mean.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from florence_jax.checkpoint.errors import ErrorCollector, clip
from florence_jax.checkpoint.param_shapes import POSITION_OFFSET, checked_shapes
from florence_jax.checkpoint.plan import LoadPlan, Report, Source
from florence_jax.checkpoint.pytorch.detect import DetectedCheckpoint, detect_checkpoint
from florence_jax.checkpoint.pytorch.key_map import LOGITS_BIAS_PATH, SHARED, match_path
from florence_jax.checkpoint.pytorch.provenance import SourceFormat
from florence_jax.checkpoint.pytorch.repo_config import read_config
from florence_jax.checkpoint.pytorch.tied_embeddings import (
    TOKEN_TABLES,
    Embeddings,
    resolve_embeddings,
)
from florence_jax.checkpoint.pytorch.transforms import Shape
from florence_jax.checkpoint.pytorch.weight_files import open_weights
from florence_jax.config import PRESETS, Florence2Config


def plan_pytorch(directory: Path, *, ignore: Sequence[str] = ()) -> LoadPlan:
    """Match the tensors of the PyTorch checkpoint in `directory` to its config's parameters.

    Only headers and token tables are read.

    Args:
        directory: holds config.json and weights.
        ignore: regular expressions for tensors to leave out (each matches a whole name).

    Raises:
        CheckpointError: one error with every problem: missing, unexpected or duplicate tensors,
            wrong shapes and dtypes, sizes on which config.json and the tensors disagree.
        ConfigError: config.json describes a model that this library does not support.
    """
    repository = read_config(directory)
    config = Florence2Config.from_hf(repository.config)
    weights = open_weights(directory)
    problems = ErrorCollector()
    detected = detect_checkpoint(weights.tensors, problems, ignore)
    subject = f"{directory} ({detected.naming} naming) does not fit its config.json"

    declared_tied = repository.config.get("tie_word_embeddings", True) is not False
    embeddings = resolve_embeddings(detected.sources, config, declared_tied, problems)
    config = embeddings.config
    expected = checked_shapes(config, len(weights.tensors), problems)
    _check_dtypes(detected.sources, problems)
    _check_sizes(config, embeddings.sources, problems)
    if expected is not None:
        _check_tree(expected, embeddings.sources, detected, problems)
    problems.raise_if_any(subject)

    warnings = [*repository.warnings, *detected.warnings, *embeddings.warnings]
    warnings += [f"{name} is there too and was not read" for name in weights.unused]
    report = Report(
        source=str(directory),
        files=weights.files,
        naming=detected.naming,
        parameters=sum(math.prod(s.tensor.shape) for s in embeddings.sources.values()),
        stored_dtypes=dict(Counter(str(tensor.dtype) for tensor in weights.tensors)),
        tied=embeddings.tied,
        untied=embeddings.untied,
        ignored=detected.ignored | embeddings.ignored,
        warnings=tuple(warnings),
    )
    origin = _origin(detected, embeddings)
    return LoadPlan(config, embeddings.sources, report, origin)


def _origin(detected: DetectedCheckpoint, embeddings: Embeddings) -> SourceFormat:
    """The tensors of the token table and the output bias that are not parameters of their own."""
    own = {source.tensor.name for path, source in embeddings.sources.items() if path != SHARED}
    stale = embeddings.ignored.keys() - {
        source.tensor.name for path, source in detected.sources.items() if path == LOGITS_BIAS_PATH
    }
    extra = {}
    for path in (*TOKEN_TABLES, LOGITS_BIAS_PATH):
        source = detected.sources.get(path)
        if source is not None and source.tensor.name not in own | stale:
            name = source.match.name(detected.naming)
            assert name is not None  # it was found under this name
            extra[name] = source.tensor.dtype.name
    rows = embeddings.config.text.vocab_size
    return SourceFormat(naming=detected.naming, vocab_size=rows, extra=extra)


def _check_dtypes(sources: dict[str, Source], problems: ErrorCollector) -> None:
    for source in sources.values():
        tensor = source.tensor
        if not tensor.is_readable:
            problems.add("tensors of an unsupported dtype", tensor.name, str(tensor.dtype))
            problems.hint(
                "float32, float16 and bfloat16 are read (float64 with an explicit dtype): use the "
                "unquantised checkpoint"
            )


def _check_tree(
    expected: dict[str, Shape],
    sources: dict[str, Source],
    detected: DetectedCheckpoint,
    problems: ErrorCollector,
) -> None:
    for path in sorted(expected.keys() - sources.keys()):
        match = match_path(path)
        if match is None:
            raise AssertionError(f"key_map.py has no rule for the model's parameter {path!r}")
        problems.add("missing tensors", match.name(detected.naming) or path)
    for path, source in sources.items():
        tensor = source.tensor
        if path not in expected:
            problems.add("tensors that this config has no place for", tensor.name)
            continue
        shape = source.transform.shape_to_ours(tensor.shape)
        if shape != expected[path]:
            wanted = source.transform.shape_to_torch(expected[path])
            problems.add(
                "tensors of the wrong shape",
                tensor.name,
                f"is {clip(str(list(tensor.shape)))}, expected {list(wanted)}",
            )


def _check_sizes(
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
        # The segment after the prefix is a layer number: key_map matched it as one.
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
