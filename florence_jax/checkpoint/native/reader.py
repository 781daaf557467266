"""Open a checkpoint that `save_checkpoint` wrote: its config.json, its parameters, its origin.

Its config.json is that of the published checkpoint it came from, or transformers' native dialect
where there was none, so whatever reads one reads the other. One section is added:

    "florence_jax": {"tie_word_embeddings": true, "final_logits_bias": false, "origin": {...}}

What the weights hold decides over what the rest of the file claims, as for published checkpoints.
"""

import collections
import dataclasses
import json
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from florence_jax.checkpoint.errors import CheckpointError, ErrorCollector
from florence_jax.checkpoint.files import contained_file, read_json_object
from florence_jax.checkpoint.native.manifest import Manifest, read_manifest
from florence_jax.checkpoint.param_tree import check_parameters
from florence_jax.checkpoint.pytorch.detect import Source
from florence_jax.checkpoint.pytorch.key_map import (
    LM_HEAD,
    LOGITS_BIAS_PATH,
    match_name,
    match_path,
)
from florence_jax.checkpoint.pytorch.lazy_tensor import LazyTensor, mapped_view
from florence_jax.checkpoint.pytorch.provenance import SourceFormat
from florence_jax.checkpoint.pytorch.repo_config import read_config
from florence_jax.checkpoint.pytorch.transforms import Transform
from florence_jax.checkpoint.report import Report
from florence_jax.config import Florence2Config

SECTION = "florence_jax"
_CONFIG = "config.json"


@dataclasses.dataclass(frozen=True)
class Saved:
    """A saved checkpoint, opened and not read: as `LoadPlan`, which it becomes."""

    config: Florence2Config
    sources: dict[str, Source]
    report: Report
    origin: SourceFormat


def open_native(directory: Path, *, ignore: Sequence[str] = ()) -> Saved:
    """Match the parameters of the saved checkpoint in `directory` to its config.

    The manifest is checked against its own digest and the files' sizes against the manifest; their
    content is not (see `manifest.verify_files`).

    Raises:
        CheckpointError: the directory is incomplete, or its parameters are not its config's.
        ConfigError: config.json describes a model that this library does not support.
    """
    manifest = read_manifest(directory)
    mappings = _map_files(directory, manifest)
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

    sources = {}
    for parameter in manifest.parameters:
        match = match_path(parameter.path)
        if match is None:
            raise AssertionError(f"keymap.py has no rule for the parameter {parameter.path!r}")
        view = mapped_view(
            mappings[parameter.file], parameter.offset, parameter.shape, parameter.dtype
        )
        label = str(directory / parameter.file)
        tensor = LazyTensor(parameter.path, parameter.shape, parameter.dtype, label, view)
        as_it_is = Transform("as it is", tuple(range(len(parameter.shape))))
        sources[parameter.path] = Source(tensor, match, as_it_is)
    dtypes = collections.Counter(p.dtype.name for p in manifest.parameters)
    report = Report(
        source=str(directory),
        files=tuple(mappings),
        naming=origin.naming,
        parameters=sum(p.nbytes // p.dtype.itemsize for p in manifest.parameters),
        stored_dtypes=dict(dtypes),
        tied=tuple(name for name in origin.extra if _is_duplicate(name, origin)),
        untied=tuple(f"{path} is kept" for path in (LM_HEAD, LOGITS_BIAS_PATH) if path in sources),
        quirks=repository.quirks,
    )
    return Saved(config, sources, report, origin)


def saved_config(
    config: Florence2Config, origin: SourceFormat | None, files: Path | None
) -> dict[str, Any]:
    """The config.json of a checkpoint to be saved.

    Args:
        config: the model.
        origin: the PyTorch file that its parameters came from; None where there was none.
        files: checkpoint directory whose config.json is kept, but for what the weights decide.

    Raises:
        CheckpointError: the config.json of `files` describes another model.
    """
    published = None if files is None else read_json_object(files, _CONFIG)
    if published is None:
        written = config.to_hf("native")
    else:
        written = with_vocabulary(published, config.text.vocab_size)
        described = dataclasses.replace(
            Florence2Config.from_hf(written),
            tie_word_embeddings=config.tie_word_embeddings,
            final_logits_bias=config.final_logits_bias,
        )
        if described != config:
            raise CheckpointError(
                f"{files}: its config.json describes another model than the one to be saved: "
                f"{_difference(described, config)}. Leave `files` out, or pass the directory that "
                "the model came from"
            )
    return written | {
        SECTION: {
            "tie_word_embeddings": config.tie_word_embeddings,
            "final_logits_bias": config.final_logits_bias,
            "origin": (origin or SourceFormat.none(written)).to_json(),
        }
    }


def with_vocabulary(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """A config.json whose vocabulary, wherever it stands, has `rows` tokens."""
    changed = json.loads(json.dumps(config))
    for section in (changed, changed.get("text_config")):
        if isinstance(section, dict) and "vocab_size" in section:
            section["vocab_size"] = rows
    return changed


def _map_files(directory: Path, manifest: Manifest) -> dict[str, mmap.mmap]:
    mappings = {}
    for name in sorted({parameter.file for parameter in manifest.parameters}):
        try:
            path = contained_file(directory, name)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{directory / name} is missing: copy or convert the checkpoint again"
            ) from error
        size, expected = path.stat().st_size, manifest.files[name].bytes
        if size != expected:
            raise CheckpointError(
                f"{directory / name} has {size} bytes, the manifest says {expected}: copy or "
                "convert the checkpoint again"
            )
        with path.open("rb") as file:
            mappings[name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return mappings


def _is_duplicate(name: str, origin: SourceFormat) -> bool:
    match = match_name(name, origin.naming)
    return match is not None and match.rule.duplicate_of_shared


def _flag(section: Mapping[str, Any], name: str, label: str) -> bool:
    value = section.get(name)
    if not isinstance(value, bool):
        raise CheckpointError(f"{label}: {SECTION}.{name} is {value!r}, expected true or false")
    return value


def _difference(described: Florence2Config, wanted: Florence2Config) -> str:
    def fields(value: Any, prefix: str = "") -> dict[str, Any]:
        found = {}
        for own in dataclasses.fields(value):
            item = getattr(value, own.name)
            name = f"{prefix}{own.name}"
            found |= fields(item, f"{name}.") if dataclasses.is_dataclass(item) else {name: item}
        return found

    theirs, ours = fields(described), fields(wanted)
    return ", ".join(
        f"{name} is {theirs[name]!r} there and {ours[name]!r} here"
        for name in ours
        if ours[name] != theirs[name]
    )
