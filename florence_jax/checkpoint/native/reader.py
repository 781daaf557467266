"""Open a checkpoint that `save_checkpoint` wrote: its config.json, its parameters, its provenance.

Its config.json is that of the published checkpoint it came from, or transformers' native dialect
where there was none, so whatever reads one reads the other. One section is added:

    "florence_jax": {"tie_word_embeddings": true, "final_logits_bias": false, "origin": {...}}

As for published checkpoints, the weights decide over what the rest of the file claims.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from florence_jax.checkpoint.errors import CheckpointError, ErrorCollector
from florence_jax.checkpoint.native.arrays import ARRAYS, SavedArrays
from florence_jax.checkpoint.native.manifest import read_manifest, verify_files
from florence_jax.checkpoint.param_shapes import check_parameters
from florence_jax.checkpoint.plan import LoadPlan, Report, Source
from florence_jax.checkpoint.pytorch.key_map import (
    LM_HEAD,
    LOGITS_BIAS_PATH,
    match_name,
    match_path,
)
from florence_jax.checkpoint.pytorch.lazy_tensor import LazyTensor
from florence_jax.checkpoint.pytorch.provenance import SourceFormat
from florence_jax.checkpoint.pytorch.repo_config import read_config
from florence_jax.checkpoint.pytorch.transforms import Transform
from florence_jax.config import Florence2Config

SECTION = "florence_jax"
_CONFIG = "config.json"


def open_native(
    directory: Path, *, ignore: Sequence[str] = (), verify: bool = False, progress: bool = False
) -> LoadPlan:
    """Match the parameters of the saved checkpoint in `directory` to its config.

    Args:
        directory: the checkpoint's.
        ignore: of `plan_checkpoint`; refused, because every parameter has a place here.
        verify: compare the content of every file with the manifest, not only the names and sizes
            of the arrays' files.
        progress: show a progress bar on stderr while verifying.

    Raises:
        CheckpointError: the directory is incomplete, or its parameters are not its config's.
        ConfigError: config.json describes a model that this library does not support.
    """
    manifest = read_manifest(directory)
    verify_files(directory, manifest, content=verify, progress=progress)
    repository = read_config(directory)
    section = repository.config.get(SECTION)
    label = str(directory / _CONFIG)
    if not isinstance(section, dict):
        raise CheckpointError(
            f"{label} has no section {SECTION!r}, which save_checkpoint writes: it is not the "
            "config.json of this checkpoint"
        )
    config = dataclasses.replace(
        Florence2Config.from_hf(repository.config),
        tie_word_embeddings=_flag(section, "tie_word_embeddings", label),
        final_logits_bias=_flag(section, "final_logits_bias", label),
    )
    origin = SourceFormat.from_json(section.get("origin"), label)
    problems = ErrorCollector()
    for pattern in ignore:
        problems.add("ignore patterns, which a saved checkpoint has no use for", pattern)
    shapes = {parameter.path: parameter.shape for parameter in manifest.parameters}
    check_parameters(config, shapes, problems)
    problems.raise_if_any(f"{directory}: the parameters do not fit {_CONFIG}")

    saved = SavedArrays(directory, {entry.path: entry for entry in manifest.parameters})
    report = Report(
        source=str(directory),
        files=tuple(name for name in manifest.files if name.startswith(f"{ARRAYS}/")),
        naming=origin.naming,
        parameters=sum(math.prod(parameter.shape) for parameter in manifest.parameters),
        stored_dtypes=collections.Counter(entry.dtype.name for entry in manifest.parameters),
        tied=tuple(name for name in origin.extra if _is_duplicate(name, origin)),
        untied=tuple(f"{path} is kept" for path in (LM_HEAD, LOGITS_BIAS_PATH) if path in shapes),
        warnings=repository.warnings,
    )
    return LoadPlan(config, _sources(saved), report, origin, saved)


def _sources(saved: SavedArrays) -> dict[str, Source]:
    """The parameters as tensors; the first one that is looked at has Orbax read them all."""
    read = functools.cache(saved.read)
    sources = {}
    for path, entry in saved.entries.items():
        match = match_path(path)
        if match is None:
            raise AssertionError(f"key_map.py has no rule for the parameter {path!r}")
        tensor = LazyTensor(
            path,
            entry.shape,
            entry.dtype,
            str(saved.directory / ARRAYS),
            functools.partial(lambda path: read()[path], path),
        )
        as_it_is = Transform("as it is", tuple(range(len(entry.shape))))
        sources[path] = Source(tensor, match, as_it_is)
    return sources


def _is_duplicate(name: str, origin: SourceFormat) -> bool:
    match = match_name(name, origin.naming)
    return match is not None and match.rule.duplicate_of_shared


def _flag(section: Mapping[str, Any], name: str, label: str) -> bool:
    value = section.get(name)
    if not isinstance(value, bool):
        raise CheckpointError(f"{label}: {SECTION}.{name} is {value!r}, expected true or false")
    return value
