"""Save a checkpoint: Orbax arrays, configuration, tokenizer and processor files, manifest."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from florence_jax.checkpoint.errors import CheckpointError, ErrorCollector
from florence_jax.checkpoint.files import (
    MAX_METADATA_BYTES,
    checkpoint_directory,
    contained_bytes,
    read_json_object,
)
from florence_jax.checkpoint.hub import METADATA_FILES
from florence_jax.checkpoint.native.arrays import ArrayEntry, write_arrays
from florence_jax.checkpoint.native.manifest import MANIFEST, Manifest, hash_files
from florence_jax.checkpoint.native.reader import SECTION
from florence_jax.checkpoint.param_shapes import check_parameters
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.checkpoint.pytorch.config_files import completed_processor
from florence_jax.checkpoint.pytorch.key_map import SHARED, match_name
from florence_jax.checkpoint.pytorch.lazy_tensor import FLOAT_DTYPES
from florence_jax.checkpoint.pytorch.provenance import SourceFormat
from florence_jax.checkpoint.resize_vocabulary import with_vocabulary
from florence_jax.config import Florence2Config
from florence_jax.runtime.terminal_bar import terminal_bar

_CONFIG = "config.json"


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter to be saved, read when its turn comes.

    Attributes:
        path: "encoder/layers/0/fc1/kernel".
        shape: its shape.
        dtype: float32, float16 or bfloat16.
        read: gives the array; called once.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray] = dataclasses.field(repr=False, compare=False)


def save_checkpoint(
    directory: str | Path,
    config: Florence2Config,
    params: Mapping[str, Any],
    *,
    files: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Manifest:
    """Save a model in this library's format, which `load_checkpoint` reads and Orbax restores.

    The directory appears as a whole when it is complete and on disk; until then an existing one is
    kept. Equal arguments give equal arrays and equal files beside them; Orbax names its own files
    at random. Parameters keep their dtypes.

    Args:
        directory: the directory to write; its parents are created.
        config: the model, as `load_checkpoint` returned it.
        params: nested dict of float32, bfloat16 or float16 arrays, with the keys and shapes of
            `florence_jax.model.abstract_params(config)`. They are copied to the host.
        files: local checkpoint directory to take everything else from: the further keys of
            config.json, generation_config.json, the tokenizer and the processor. Without it the
            checkpoint has a config.json alone.
        overwrite: replace an existing checkpoint.
        progress: show a progress bar on stderr.

    Raises:
        CheckpointError: the parameters are not the config's, the directory exists already, or the
            disk is full.
    """
    leaves = [_leaf(path, array) for path, array in flatten(params)]
    folder = None if files is None else Path(files)
    origin = None if folder is None else _inherited_origin(folder, config, leaves)
    return save_leaves(
        Path(directory),
        config,
        leaves,
        files=folder,
        origin=origin,
        overwrite=overwrite,
        progress=progress,
    )


def save_leaves(
    directory: Path,
    config: Florence2Config,
    leaves: Sequence[Leaf],
    *,
    files: Path | None = None,
    origin: SourceFormat | None = None,
    extra_files: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Manifest:
    """`save_checkpoint` for parameters that are read once nothing else stands in the way.

    Args:
        directory, config, files, overwrite, progress: as for `save_checkpoint`.
        leaves: the parameters, in any order.
        origin: the PyTorch file that they come from.
        extra_files: further files by name; one of `files` is preferred to one of the same name.

    Raises:
        CheckpointError: as `save_checkpoint`.
    """
    problems = ErrorCollector()
    check_parameters(config, {leaf.path: leaf.shape for leaf in leaves}, problems)
    for leaf in leaves:
        if leaf.dtype not in FLOAT_DTYPES:
            problems.add("parameters of an unsupported dtype", leaf.path, leaf.dtype.name)
            problems.hint("cast them to float32, bfloat16 or float16")
    problems.raise_if_any("these parameters cannot be saved")
    small_files = dict(extra_files or {})
    if files is not None:
        small_files |= dict(_copied(files))
    small_files[_CONFIG] = _dump(saved_config(config, origin, files))
    entries = tuple(ArrayEntry(leaf.path, leaf.shape, leaf.dtype) for leaf in leaves)
    total = 2 * sum(entry.nbytes for entry in entries)  # read once, and hashed once written
    with (
        checkpoint_directory(directory, overwrite=overwrite) as new,
        terminal_bar(
            total=total, desc="writing", unit="B", unit_scale=True, shown=progress
        ) as progress_bar,
    ):
        for name, content in small_files.items():
            (new / name).write_bytes(content)
        arrays = {}
        for leaf in leaves:
            arrays[leaf.path] = leaf.read()
            progress_bar.update(arrays[leaf.path].nbytes)
        write_arrays(new, arrays)
        manifest = Manifest(hash_files(new, progress_bar.update), entries)
        (new / MANIFEST).write_bytes(manifest.encode())
    return manifest


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


def _leaf(path: str, array: Any) -> Leaf:
    if not getattr(array, "is_fully_addressable", True):  # which only a jax.Array may not be
        raise CheckpointError(
            f"{path} is spread over several processes, and this one holds a part of it: gather the "
            "parameters first (jax.experimental.multihost_utils.process_allgather, "
            "tiled=True), and save from one process"
        )
    return Leaf(path, tuple(array.shape), np.dtype(array.dtype), lambda: np.asarray(array))


def _inherited_origin(
    files: Path, config: Florence2Config, leaves: Sequence[Leaf]
) -> SourceFormat | None:
    """What a saved checkpoint remembers of its PyTorch file, as far as it still holds."""
    section = (read_json_object(files, _CONFIG) or {}).get(SECTION)
    if not isinstance(section, dict):
        return None
    origin = SourceFormat.from_json(section.get("origin"), str(files / _CONFIG))
    paths = {leaf.path: leaf for leaf in leaves}
    if SHARED not in paths:
        return None  # reported as missing later
    dtype = paths[SHARED].dtype.name
    # What has become a parameter of its own since then is no longer a copy of the table.
    matches = {name: match_name(name, origin.naming) for name in origin.extra}
    extra = {
        name: dtype
        for name, match in matches.items()
        if match is not None and (match.path == SHARED or match.path not in paths)
    }
    return SourceFormat(naming=origin.naming, vocab_size=config.text.vocab_size, extra=extra)


def _copied(files: Path) -> Iterator[tuple[str, bytes]]:
    for name in METADATA_FILES:
        if name != _CONFIG:
            with contextlib.suppress(FileNotFoundError):
                content = contained_bytes(files, name, MAX_METADATA_BYTES)
                yield name, completed_processor(name, content)


def _dump(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


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
