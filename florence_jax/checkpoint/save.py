"""Write a checkpoint: Orbax arrays, configuration, tokenizer and processor files, manifest."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from florence_jax.checkpoint.files import contained_file, read_json_object
from florence_jax.checkpoint.hub import METADATA_FILES
from florence_jax.checkpoint.keymap import SHARED, match_name
from florence_jax.checkpoint.manifest import MANIFEST, FileEntry, Manifest
from florence_jax.checkpoint.orbax_layout import Placed, index_files, place
from florence_jax.checkpoint.origin import Origin
from florence_jax.checkpoint.problems import CheckpointError, Problems
from florence_jax.checkpoint.replace import replaced_directory
from florence_jax.checkpoint.saved import SECTION, saved_config
from florence_jax.checkpoint.stored import FLOAT_DTYPES
from florence_jax.checkpoint.tree import check_parameters, flatten
from florence_jax.config import Florence2Config

# What is written is hashed next, in pieces that are then still in the processor's cache. Plain
# writes in pieces of 16 MiB took five times as long.
_CHUNK = 1 << 20
_CONFIG = "config.json"


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter that is read when its turn comes.

    Attributes:
        path: "encoder/layers/0/fc1/kernel".
        shape: its shape.
        dtype: float32, float16 or bfloat16.
        read: gives the array, of this shape and dtype.
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
    origin: Origin | None = None,
    extra_files: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Manifest:
    """`save_checkpoint` for parameters that are read one at a time: two are in memory at once.

    Args:
        directory, config, files, overwrite, progress: as for `save_checkpoint`.
        leaves: the parameters, in any order.
        origin: the PyTorch file that they come from.
        extra_files: further files by name; one of `files` is preferred to one of the same name.

    Raises:
        CheckpointError: as `save_checkpoint`.
    """
    problems = Problems()
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
    placed = place((leaf.path, leaf.shape, leaf.dtype) for leaf in leaves)
    small_files |= index_files(placed)
    with replaced_directory(directory, overwrite=overwrite) as new:
        entries = {name: _write_file(new / name, content) for name, content in small_files.items()}
        entries |= _write_arrays(new, placed, {leaf.path: leaf for leaf in leaves}, progress)
        manifest = Manifest(entries, placed)
        _write_file(new / MANIFEST, manifest.encode())
    return manifest


def _leaf(path: str, array: Any) -> Leaf:
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        raise CheckpointError(
            f"{path} is spread over several processes, and this one holds a part of it: gather the "
            "parameters first (jax.experimental.multihost_utils.process_allgather, "
            "tiled=True), and save from one process"
        )
    return Leaf(path, tuple(array.shape), np.dtype(array.dtype), lambda: np.asarray(array))


def _inherited_origin(
    files: Path, config: Florence2Config, leaves: Sequence[Leaf]
) -> Origin | None:
    """What a saved checkpoint remembers of its PyTorch file, as far as it still holds."""
    section = (read_json_object(files, _CONFIG) or {}).get(SECTION)
    if not isinstance(section, dict):
        return None
    origin = Origin.from_json(section.get("origin"), str(files / _CONFIG))
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
    return Origin(naming=origin.naming, vocab_size=config.text.vocab_size, extra=extra)


def _copied(files: Path) -> Iterator[tuple[str, bytes]]:
    for name in METADATA_FILES:
        if name != _CONFIG:
            with contextlib.suppress(FileNotFoundError):
                yield name, contained_file(files, name).read_bytes()


def _write_arrays(
    new: Path, placed: Sequence[Placed], leaves: Mapping[str, Leaf], progress: bool
) -> dict[str, FileEntry]:
    """The data files. While one array is hashed and written, the next is read and cast."""
    entries = {}
    total = sum(parameter.nbytes for parameter in placed)
    with (
        ThreadPoolExecutor(1) as pool,
        tqdm(
            total=total, desc="writing", unit="B", unit_scale=True, disable=not progress
        ) as progress_bar,
    ):
        for name, members in itertools.groupby(placed, lambda parameter: parameter.file):
            with _HashedFile(new / name) as file:
                writing: Future[None] | None = None
                for parameter in members:
                    array = np.ascontiguousarray(leaves[parameter.path].read())
                    if array.dtype != parameter.dtype or array.shape != parameter.shape:
                        raise AssertionError(f"{parameter} was read as {array.dtype}{array.shape}")
                    if writing is not None:
                        writing.result()
                    content = array.reshape(-1).view(np.uint8)
                    writing = pool.submit(file.write, parameter.offset, content)
                    progress_bar.update(parameter.nbytes)
                if writing is not None:
                    writing.result()
                entries[name] = file.close()
    return entries


def _write_file(path: Path, content: bytes) -> FileEntry:
    with _HashedFile(path) as file:
        file.write(0, np.frombuffer(content, np.uint8))
        return file.close()


class _HashedFile:
    """A new file, written from front to back and hashed on the way."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("xb", buffering=0)
        self._digest = hashlib.sha256()
        self._size = 0

    def __enter__(self) -> "_HashedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, offset: int, content: np.ndarray) -> None:
        """Put uint8[n] at `offset`, with zeros up to there."""
        for part in (np.zeros(offset - self._size, np.uint8), content):
            view = part.data
            while view:
                written = self._file.write(view[:_CHUNK])
                self._digest.update(view[:written])
                view = view[written:]
        self._size = offset + content.size

    def close(self) -> FileEntry:
        os.fsync(self._file.fileno())
        self._file.close()
        return FileEntry(self._size, self._digest.hexdigest())


def _dump(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
