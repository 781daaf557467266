"""Match a checkpoint's tensors to the parameters of its config, before anything is allocated."""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from florence_jax.checkpoint.errors import ErrorCollector, clip
from florence_jax.checkpoint.native.manifest import is_saved
from florence_jax.checkpoint.native.reader import open_native
from florence_jax.checkpoint.param_shapes import param_shapes
from florence_jax.checkpoint.pytorch.detect import DetectedCheckpoint, Source, recognise
from florence_jax.checkpoint.pytorch.infer_sizes import check_reason, check_sizes
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
from florence_jax.checkpoint.report import Report
from florence_jax.config import Florence2Config


@dataclasses.dataclass(frozen=True)
class LoadPlan:
    """How every parameter of a checkpoint's model is filled; nothing has been read yet.

    Attributes:
        config: the model that the checkpoint holds.
        sources: path in the parameter tree -> stored tensor and its transform; complete, with
            shapes that fit `config`.
        report: what was decided and found odd.
        origin: what the PyTorch file has beyond these parameters.
    """

    config: Florence2Config
    sources: dict[str, Source]
    report: Report
    origin: SourceFormat


def plan_checkpoint(directory: Path, *, ignore: Sequence[str] = ()) -> LoadPlan:
    """Work out what the checkpoint in `directory` is, reading only headers and token tables.

    Args:
        directory: holds config.json and weights; see `florence_jax.checkpoint.hub.resolve`.
        ignore: regular expressions for tensors to leave out (each matches a whole name).

    Raises:
        CheckpointError: one error with every problem: missing, unexpected or duplicate tensors,
            wrong shapes and dtypes, sizes on which config.json and the tensors disagree.
        ConfigError: config.json describes a model that this library does not support.
    """
    if is_saved(directory):
        saved = open_native(directory, ignore=ignore)
        return LoadPlan(saved.config, saved.sources, saved.report, saved.origin)
    repository = read_config(directory)
    config = Florence2Config.from_hf(repository.config)
    weights = open_weights(directory)
    problems = ErrorCollector()
    recognised = recognise(weights.tensors, problems, ignore)
    subject = f"{directory} ({recognised.naming} naming) does not fit its config.json"

    _check_dtypes(recognised.sources, problems)
    declared_tied = repository.config.get("tie_word_embeddings", True) is not False
    embeddings = resolve_embeddings(recognised.sources, config, declared_tied, problems)
    config = embeddings.config
    check_sizes(config, embeddings.sources, problems)
    if check_reason(config, len(weights.tensors), problems):
        _check_tree(param_shapes(config), embeddings.sources, recognised, problems)
    problems.raise_if_any(subject)

    quirks = [*repository.quirks, *recognised.quirks, *embeddings.quirks]
    quirks += [f"{name} is there too and was not read" for name in weights.unused]
    report = Report(
        source=str(directory),
        files=weights.files,
        naming=recognised.naming,
        parameters=sum(math.prod(s.tensor.shape) for s in embeddings.sources.values()),
        stored_dtypes=dict(Counter(str(tensor.dtype) for tensor in weights.tensors)),
        tied=embeddings.tied,
        untied=embeddings.untied,
        ignored=recognised.ignored | embeddings.ignored,
        quirks=tuple(quirks),
    )
    origin = _origin(recognised, embeddings)
    return LoadPlan(config, embeddings.sources, report, origin)


def _origin(recognised: DetectedCheckpoint, embeddings: Embeddings) -> SourceFormat:
    """The tensors of the token table and the output bias that are not parameters of their own."""
    own = {source.tensor.name for path, source in embeddings.sources.items() if path != SHARED}
    stale = embeddings.ignored.keys() - {
        source.tensor.name
        for path, source in recognised.sources.items()
        if path == LOGITS_BIAS_PATH
    }
    extra = {}
    for path in (*TOKEN_TABLES, LOGITS_BIAS_PATH):
        source = recognised.sources.get(path)
        if source is not None and source.tensor.name not in own | stale:
            name = source.match.name(recognised.naming)
            assert name is not None  # it was found under this name
            extra[name] = source.tensor.dtype.name
    rows = embeddings.config.text.vocab_size
    return SourceFormat(naming=recognised.naming, vocab_size=rows, extra=extra)


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
    recognised: DetectedCheckpoint,
    problems: ErrorCollector,
) -> None:
    for path in sorted(expected.keys() - sources.keys()):
        match = match_path(path)
        if match is None:
            raise AssertionError(f"keymap.py has no rule for the model's parameter {path!r}")
        problems.add("missing tensors", match.name(recognised.naming) or path)
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
