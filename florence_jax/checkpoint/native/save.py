"""Save a checkpoint: Orbax arrays, configuration, tokenizer and processor files, manifest."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from florence_jax.checkpoint.errors import CheckpointError, ErrorCollector
from florence_jax.checkpoint.json_files import copied_files, dialect, dump_json, with_vocabulary
from florence_jax.checkpoint.load import contiguous, leaf_dtype
from florence_jax.checkpoint.native.arrays import ArrayEntry, write_arrays
from florence_jax.checkpoint.native.manifest import Manifest, hash_files, read_origin
from florence_jax.checkpoint.param_tree import check_sources, flatten
from florence_jax.checkpoint.plan import FLOAT_DTYPES, LazyTensor, Source, SourceFormat
from florence_jax.checkpoint.pytorch.key_map import SHARED, TABLE_PATHS
from florence_jax.checkpoint.repository import (
    MANIFEST,
    SECTION,
    checkpoint_directory,
    read_json_object,
)
from florence_jax.config import Florence2Config
from florence_jax.runtime.terminal_bar import terminal_bar

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
    sources = {path: _in_memory(path, array) for path, array in flatten(params)}
    folder = None if files is None else Path(files)
    return save_sources(
        Path(directory),
        config,
        sources,
        files=folder,
        origin=None if folder is None else _inherited_origin(folder, config, sources),
        overwrite=overwrite,
        progress=progress,
    )


def save_sources(
    directory: Path,
    config: Florence2Config,
    sources: Mapping[str, Source],
    *,
    dtype: np.dtype | None = None,
    files: Path | None = None,
    origin: SourceFormat | None = None,
    extra_files: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Manifest:
    """`save_checkpoint` for parameters that are read once nothing else stands in the way.

    Args:
        directory, config, files, overwrite, progress: as for `save_checkpoint`.
        sources: the tensors of the parameters, by path.
        dtype: of every parameter; None keeps the stored ones.
        origin: the PyTorch file that they come from.
        extra_files: further files by name; one of `files` is preferred to one of the same name.

    Raises:
        CheckpointError: as `save_checkpoint`.
    """
    problems = ErrorCollector()
    check_sources(config, sources, problems)
    for path, source in sources.items():
        if dtype is None and source.tensor.dtype not in FLOAT_DTYPES:
            problems.add("parameters of an unsupported dtype", path, source.tensor.dtype.name)
            problems.hint("cast them to float32, bfloat16 or float16")
    problems.raise_if_any("these parameters cannot be saved")
    small_files = dict(extra_files or {})
    if files is not None:
        small_files |= copied_files(files)
    small_files[_CONFIG] = dump_json(saved_config(config, origin, files))
    entries = tuple(
        ArrayEntry(path, source.shape or (), leaf_dtype(source, dtype))
        for path, source in sources.items()
    )
    total = 2 * sum(entry.nbytes for entry in entries)  # read once, and hashed once written
    with (
        checkpoint_directory(directory, overwrite=overwrite) as new,
        terminal_bar(total=total, desc="writing", unit="B", unit_scale=True, shown=progress) as bar,
    ):
        for name, content in small_files.items():
            (new / name).write_bytes(content)
        arrays = {}
        for entry in entries:
            source = sources[entry.path]
            arrays[entry.path] = contiguous(source, source.view(), entry.dtype)
            bar.update(entry.nbytes)
        write_arrays(new, arrays)
        manifest = Manifest(hash_files(new, bar.update), entries)
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
    if origin is None:
        rows = written["text_config"]["vocab_size"]
        origin = SourceFormat(naming=dialect(written), vocab_size=rows, extra={})
    return written | {
        SECTION: {
            "tie_word_embeddings": config.tie_word_embeddings,
            "final_logits_bias": config.final_logits_bias,
            "origin": vars(origin) | {"extra": dict(sorted(origin.extra.items()))},
        }
    }


def _in_memory(path: str, array: Any) -> Source:
    if not getattr(array, "is_fully_addressable", True):  # which only a jax.Array may not be
        raise CheckpointError(
            f"{path} is spread over several processes, and this one holds a part of it: gather the "
            "parameters first (jax.experimental.multihost_utils.process_allgather, "
            "tiled=True), and save from one process"
        )
    shape, dtype = tuple(array.shape), np.dtype(array.dtype)
    return Source(LazyTensor(path, shape, dtype, "memory", lambda: np.asarray(array)))


def _inherited_origin(
    files: Path, config: Florence2Config, sources: Mapping[str, Source]
) -> SourceFormat | None:
    """The origin that the saved checkpoint `files` remembers, as far as it still holds."""
    section = (read_json_object(files, _CONFIG) or {}).get(SECTION)
    if not isinstance(section, dict) or SHARED not in sources:
        return None
    origin = read_origin(section, str(files / _CONFIG))
    # What has become a parameter of its own since then is no longer a copy of the table.
    paths = TABLE_PATHS[origin.naming]
    kept = [name for name in origin.extra if paths[name] == SHARED or paths[name] not in sources]
    extra = dict.fromkeys(kept, sources[SHARED].tensor.dtype.name)
    return SourceFormat(naming=origin.naming, vocab_size=config.text.vocab_size, extra=extra)


def _difference(described: Florence2Config, wanted: Florence2Config) -> str:
    theirs, ours = (dict(flatten(dataclasses.asdict(one))) for one in (described, wanted))
    return ", ".join(
        f"{path.replace('/', '.')} is {theirs[path]!r} there and {value!r} here"
        for path, value in ours.items()
        if value != theirs[path]
    )
