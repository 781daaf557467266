"""Write a checkpoint: Orbax arrays, configuration, tokenizer and processor files, manifest."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from florence_jax.checkpoint.errors import CheckpointError, ErrorCollector
from florence_jax.checkpoint.files import MAX_METADATA_BYTES, contained_bytes, read_json_object
from florence_jax.checkpoint.hub import METADATA_FILES
from florence_jax.checkpoint.native.manifest import MANIFEST, Manifest
from florence_jax.checkpoint.native.orbax_format import index_files, layout
from florence_jax.checkpoint.native.reader import SECTION, saved_config
from florence_jax.checkpoint.native.writer import Leaf, write_data_files, write_small_file
from florence_jax.checkpoint.param_tree import check_parameters, flatten
from florence_jax.checkpoint.pytorch.cast import cast_into
from florence_jax.checkpoint.pytorch.key_map import SHARED, match_name
from florence_jax.checkpoint.pytorch.lazy_tensor import FLOAT_DTYPES
from florence_jax.checkpoint.pytorch.processor_config import completed_processor
from florence_jax.checkpoint.pytorch.provenance import SourceFormat
from florence_jax.config import Florence2Config
from florence_jax.runtime.atomic_dir import atomic_directory

_CONFIG = "config.json"


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
    kept. Equal arguments give equal bytes. Parameters keep their dtypes.

    Args:
        directory: where to; its parents are created.
        config: the model, as `load_checkpoint` returned it.
        params: nested dict of float32, bfloat16 or float16 arrays, with the keys and shapes of
            `florence_jax.model.abstract_params(config)`. One leaf at a time is copied to the host.
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
    """`save_checkpoint` for parameters that are read a few megabytes at a time.

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
    placed = layout((leaf.path, leaf.shape, leaf.dtype) for leaf in leaves)
    small_files |= index_files(placed)
    with atomic_directory(directory, overwrite=overwrite) as new:
        entries = {
            name: write_small_file(new / name, content) for name, content in small_files.items()
        }
        by_path = {leaf.path: leaf for leaf in leaves}
        entries |= write_data_files(new, placed, by_path, progress=progress)
        manifest = Manifest(entries, placed)
        write_small_file(new / MANIFEST, manifest.encode())
    return manifest


def _leaf(path: str, array: Any) -> Leaf:
    if not getattr(array, "is_fully_addressable", True):  # which a jax.Array may be, alone
        raise CheckpointError(
            f"{path} is spread over several processes, and this one holds a part of it: gather the "
            "parameters first (jax.experimental.multihost_utils.process_allgather, "
            "tiled=True), and save from one process"
        )

    def read(target: np.ndarray, rows: slice) -> None:
        cast_into(target, np.asarray(array)[rows])

    return Leaf(path, tuple(array.shape), np.dtype(array.dtype), read)


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
