"""Plan the loading of a checkpoint that `save_checkpoint` wrote, after a check of its manifest.

`manifest.json` has the sha256 of every file, and the shape and dtype of every array. Orbax restores
arrays with flipped bits without an error, so every file is compared with the manifest before
anything is used. The manifest ends with its own sha256. It finds damage and mix-ups; it is not a
signature: anyone who can write the directory can write a new manifest.

config.json is that of the published checkpoint that the model came from, or transformers' native
dialect where there was none, so that one reader reads both. One section is added:

    "florence_jax": {"tie_word_embeddings": true, "final_logits_bias": false, "origin": {...}}

As for published checkpoints, the weights decide over what the rest of the file claims.
"""

import collections
import dataclasses
import functools
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from florence_jax.checkpoint.errors import CheckpointError, ErrorCollector, clip
from florence_jax.checkpoint.native.arrays import ArrayEntry, SavedArrays
from florence_jax.checkpoint.param_tree import check_sources
from florence_jax.checkpoint.plan import (
    FLOAT_DTYPES,
    READABLE_DTYPES,
    LazyTensor,
    LoadPlan,
    Report,
    Source,
    SourceFormat,
)
from florence_jax.checkpoint.pytorch.key_map import (
    DUPLICATE_PATHS,
    LM_HEAD,
    LOGITS_BIAS_PATH,
    NAMINGS,
    TABLE_PATHS,
)
from florence_jax.checkpoint.repository import (
    ARRAYS,
    FORMAT,
    MANIFEST,
    SECTION,
    RepositoryConfig,
    contained_file,
)
from florence_jax.config import Florence2Config
from florence_jax.runtime.jsonl import sealed_json
from florence_jax.runtime.terminal_bar import terminal_bar

VERSION = 1
# Files that model hubs and version control add to a checkpoint; none of them is ever read.
_BYSTANDERS = frozenset({"README.md", "LICENSE", ".gitattributes", ".git", ".cache"})
_MAX_THREADS = 4
_DTYPES = {dtype.name: dtype for dtype in FLOAT_DTYPES}
_EXTRA_DTYPES = tuple(dtype.name for dtype in READABLE_DTYPES)
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
        return sealed_json(
            {"format": FORMAT, "version": VERSION, "files": files, "parameters": parameters}
        )


def plan_saved(
    repository: RepositoryConfig,
    stored: tuple[bytes, Any],
    *,
    ignore: Sequence[str] = (),
    verify: bool = False,
    progress: bool = False,
) -> LoadPlan:
    """Match the parameters of a saved checkpoint to its config.

    Args:
        repository: the checkpoint's configuration files.
        stored: its manifest, as `read_manifest` gives it.
        ignore: of `plan_checkpoint`; refused, because every parameter has a place here.
        verify: compare the content of every file with the manifest, not only the names and sizes
            of the arrays' files.
        progress: show a progress bar on stderr while verifying.

    Raises:
        CheckpointError: the directory is incomplete, or its parameters are not its config's.
        ConfigError: config.json describes a model that this library does not support.
    """
    directory = repository.directory
    manifest = _parse(*stored, str(directory / MANIFEST))
    _verify_files(directory, manifest, content=verify, progress=progress)
    label = str(directory / "config.json")
    section = repository.config.get(SECTION)
    if not isinstance(section, dict):
        raise CheckpointError(
            f"{label} has no section {SECTION!r}, which save_checkpoint writes: it is not the "
            "config.json of this checkpoint"
        )
    flags = {name: section.get(name) for name in ("tie_word_embeddings", "final_logits_bias")}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise CheckpointError(f"{label}: {SECTION}.{name} is {value!r}, expected true or false")
    origin = read_origin(section, label)
    config = dataclasses.replace(Florence2Config.from_hf(repository.config), **flags)
    saved = SavedArrays(directory, {entry.path: entry for entry in manifest.parameters})
    # The first parameter that is looked at has Orbax read them all.
    read = functools.cache(saved.read)
    file = str(directory / ARRAYS)
    sources = {
        path: Source(
            LazyTensor(path, entry.shape, entry.dtype, file, lambda path=path: read()[path])
        )
        for path, entry in saved.entries.items()
    }
    copies = TABLE_PATHS[origin.naming]
    report = Report(
        source=str(directory),
        files=tuple(name for name in manifest.files if name.startswith(f"{ARRAYS}/")),
        naming=origin.naming,
        parameters=sum(math.prod(parameter.shape) for parameter in manifest.parameters),
        stored_dtypes=collections.Counter(entry.dtype.name for entry in manifest.parameters),
        tied=tuple(name for name in origin.extra if copies[name] in DUPLICATE_PATHS),
        untied=tuple(f"{path} is kept" for path in (LM_HEAD, LOGITS_BIAS_PATH) if path in sources),
        warnings=repository.warnings,
    )
    problems = ErrorCollector()
    for pattern in ignore:
        problems.add("ignore patterns, which a saved checkpoint has no use for", pattern)
    check_sources(config, sources, problems)
    problems.raise_if_any(f"{directory}: the parameters do not fit config.json")
    return LoadPlan(repository, config, sources, report, origin, saved)


def read_origin(section: Mapping[str, Any], label: str) -> SourceFormat:
    """The PyTorch file that a saved checkpoint came from, as its config.json's section says.

    Raises:
        CheckpointError: the section, which `label` holds, has another form.
    """
    value = section.get("origin")
    fields = value if isinstance(value, dict) else {}
    naming, rows, extra = (fields.get(name) for name in ("naming", "vocab_size", "extra"))
    if (
        naming not in NAMINGS
        or type(rows) is not int
        or not isinstance(extra, dict)
        or not extra.keys() <= TABLE_PATHS[naming].keys()
        or not all(dtype in _EXTRA_DTYPES for dtype in extra.values())
    ):
        raise CheckpointError(
            f"{label}: {clip(repr(value))} does not say what the checkpoint was converted from "
            "(naming, vocab_size, extra): convert it again"
        )
    return SourceFormat(naming=naming, vocab_size=rows, extra=extra)


def hash_files(directory: Path, on_read: Callable[[int], object]) -> dict[str, FileEntry]:
    """The manifest's entry of every file below `directory`; `on_read` is told each byte count."""
    paths = {name: directory / name for name in sorted(_walk(directory))}
    digests = _digests(paths.values(), on_read)
    return {
        name: FileEntry(path.stat().st_size, digest)
        for (name, path), digest in zip(paths.items(), digests, strict=True)
    }


def _verify_files(directory: Path, manifest: Manifest, *, content: bool, progress: bool) -> None:
    """Compare every file with the manifest; without `content`, names and sizes of arrays alone."""
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
        bar = terminal_bar(total=total, desc="verifying", unit="B", unit_scale=True, shown=progress)
        with bar:
            digests = _digests(paths.values(), bar.update)
        for name, digest in zip(paths, digests, strict=True):
            if digest != manifest.files[name].sha256:
                problems.add("damaged or changed files", name, f"sha256 is {digest}")
    if problems:
        problems.hint(
            "copy or convert the checkpoint again; to keep a deliberate change, save the model "
            "anew with save_checkpoint"
        )
    problems.raise_if_any(f"{directory} does not match its {MANIFEST}")


def _digests(paths: Iterable[Path], on_read: Callable[[int], object]) -> list[str]:
    def digest(path: Path) -> str:
        with path.open("rb", buffering=0) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            on_read(file.tell())
        return found

    # hashlib releases the GIL, so files are hashed in parallel.
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(digest, paths))


def _walk(directory: Path) -> Iterator[str]:
    """Every file and symlink below `directory`, by relative name, bystanders left out."""
    for folder, folders, files in os.walk(directory):
        at_top = Path(folder) == directory
        folders[:] = [name for name in folders if not (at_top and name in _BYSTANDERS)]
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in (*files, *links):
            if not (at_top and name in _BYSTANDERS):
                yield (Path(folder) / name).relative_to(directory).as_posix()


def _parse(content: bytes, fields: Any, label: str) -> Manifest:
    """The manifest, checked against its own digest."""
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise CheckpointError(f"{label} is not the manifest of a saved checkpoint, or is damaged")
    if fields.get("version") != VERSION:
        raise CheckpointError(
            f"{label} is of version {clip(repr(fields.get('version')))}; this release reads "
            f"version {VERSION}: upgrade florence-jax"
        )
    fields.pop("sha256", None)
    if sealed_json(fields) != content:
        raise CheckpointError(
            f"{label} is damaged or was edited: its content does not have the sha256 that it "
            "ends with. Copy or convert the checkpoint again"
        )
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
