"""`manifest.json` of a saved checkpoint: sha256 of every file, shape and dtype of every array.

Orbax restores arrays with flipped bits without an error, so every file is compared with the
manifest before anything is used. The manifest ends with its own sha256. It finds damage and
mix-ups; it is not a signature: anyone who can write the directory can write a new manifest.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from florence_jax.checkpoint.errors import CheckpointError, ErrorCollector, clip
from florence_jax.checkpoint.files import contained_bytes, contained_file, parse_json
from florence_jax.checkpoint.native.arrays import ARRAYS, ArrayEntry
from florence_jax.checkpoint.pytorch.lazy_tensor import FLOAT_DTYPES
from florence_jax.runtime.terminal_bar import terminal_bar

MANIFEST = "manifest.json"
FORMAT = "florence-jax checkpoint"
VERSION = 1

# Files that model hubs and version control add to a checkpoint; none of them is ever read.
_BYSTANDERS = frozenset({"README.md", "LICENSE", ".gitattributes", ".git", ".cache"})
# The manifest of Florence-2-large has 100 kB.
_MAX_BYTES = 8 << 20
_MAX_THREADS = 4
_BLOCK = 1 << 20
_DTYPES = {dtype.name: dtype for dtype in FLOAT_DTYPES}
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """One file: its size and the hexadecimal sha256 of its content."""

    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The files of a saved checkpoint by relative name, and its parameters."""

    files: Mapping[str, FileEntry]
    parameters: tuple[ArrayEntry, ...]

    def encode(self) -> bytes:
        """Canonical JSON that ends with its own digest."""
        files = {name: dataclasses.asdict(self.files[name]) for name in sorted(self.files)}
        parameters = {
            parameter.path: {"dtype": parameter.dtype.name, "shape": list(parameter.shape)}
            for parameter in sorted(self.parameters, key=lambda parameter: parameter.path)
        }
        return _encode(
            {"format": FORMAT, "version": VERSION, "files": files, "parameters": parameters}
        )


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a saved checkpoint and check it against its own digest.

    Raises:
        CheckpointError: it is missing, damaged, edited, or of a newer format.
    """
    label = str(directory / MANIFEST)
    try:
        content = contained_bytes(directory, MANIFEST, _MAX_BYTES)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{label} is missing: without it nothing says whether the checkpoint is whole. Copy "
            "or convert the checkpoint again"
        ) from error
    fields = parse_json(content, label)
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise CheckpointError(f"{label} is not the manifest of a saved checkpoint, or is damaged")
    if fields.get("version") != VERSION:
        raise CheckpointError(
            f"{label} is of version {clip(repr(fields.get('version')))}; this release reads "
            f"version {VERSION}: upgrade florence-jax"
        )
    fields.pop("sha256", None)
    if _encode(fields) != content:
        raise CheckpointError(
            f"{label} is damaged or was edited: its content does not have the sha256 that it "
            "ends with. Copy or convert the checkpoint again"
        )
    return _parse(fields, label)


def hash_files(directory: Path, on_read: Callable[[int], object]) -> dict[str, FileEntry]:
    """The manifest's entry of every file below `directory`; `on_read` is told each byte count."""
    paths = {name: directory / name for name in sorted(_walk(directory))}
    digests = _digests(paths.values(), on_read)
    return {
        name: FileEntry(path.stat().st_size, digest)
        for (name, path), digest in zip(paths.items(), digests, strict=True)
    }


def verify_files(
    directory: Path, manifest: Manifest, *, content: bool = True, progress: bool = False
) -> None:
    """Compare every file of a saved checkpoint with the manifest.

    Args:
        content: False compares the names and sizes of the arrays' files alone.
        progress: show a progress bar on stderr.

    Raises:
        CheckpointError: lists every file that is missing, extra, of another size or content, or
            outside the directory.
    """
    problems = ErrorCollector()
    paths: dict[str, Path] = {}
    for name, entry in manifest.files.items():
        if not (content or name.startswith(f"{ARRAYS}/")):
            continue
        try:
            path = contained_file(directory, name)
        except FileNotFoundError:
            problems.add("missing files", name)
        except CheckpointError as error:
            problems.add("refused files", name, str(error))
        else:
            size = path.stat().st_size
            if size == entry.bytes:
                paths[name] = path
            else:
                problems.add("files of the wrong size", name, f"{size} bytes, not {entry.bytes}")
    for name in _walk(directory):
        if content and name not in manifest.files and name != MANIFEST:
            problems.add("files that the manifest does not list", name)
    if content:
        total = sum(manifest.files[name].bytes for name in paths)
        with terminal_bar(
            total=total, desc="verifying", unit="B", unit_scale=True, shown=progress
        ) as progress_bar:
            digests = _digests(paths.values(), progress_bar.update)
        for name, digest in zip(paths, digests, strict=True):
            if digest != manifest.files[name].sha256:
                problems.add("damaged or changed files", name, f"sha256 is {digest}")
    if problems:
        problems.hint(
            "copy or convert the checkpoint again; to keep a deliberate change, save the model "
            "anew with save_checkpoint"
        )
    problems.raise_if_any(f"{directory} does not match its {MANIFEST}")


def _encode(fields: dict[str, Any]) -> bytes:
    digest = hashlib.sha256(json.dumps(fields, indent=1).encode()).hexdigest()
    return json.dumps(fields | {"sha256": digest}, indent=1).encode() + b"\n"


def _digests(paths: Iterable[Path], on_read: Callable[[int], object]) -> list[str]:
    # hashlib releases the GIL, so files are hashed in parallel.
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda path: _digest(path, on_read), paths))


def _digest(path: Path, on_read: Callable[[int], object]) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            on_read(count)
    return digest.hexdigest()


def _walk(directory: Path) -> Iterator[str]:
    """Every file and symlink below `directory`, by relative name, bystanders left out."""
    for folder, folders, files in os.walk(directory):
        at_top = Path(folder) == directory
        folders[:] = [name for name in folders if not (at_top and name in _BYSTANDERS)]
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in (*files, *links):
            if not (at_top and name in _BYSTANDERS):
                yield (Path(folder) / name).relative_to(directory).as_posix()


def _parse(fields: dict[str, Any], label: str) -> Manifest:
    try:
        files = {
            name: FileEntry(_size(entry["bytes"]), _sha256(entry["sha256"]))
            for name, entry in fields["files"].items()
        }
        parameters = tuple(
            ArrayEntry(
                path, tuple(_size(length) for length in entry["shape"]), _DTYPES[entry["dtype"]]
            )
            for path, entry in fields["parameters"].items()
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{label} is not a manifest that save_checkpoint wrote: {clip(repr(error))}. Copy or "
            "convert the checkpoint again"
        ) from error
    return Manifest(files, parameters)


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a size")
    return value


def _sha256(value: Any) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"{value!r} is not a sha256")
    return value
