"""Which files of a checkpoint directory may be opened, and JSON that is read with limits.

A checkpoint directory is untrusted: an index file or a symlink may point anywhere. Nothing outside
the directory is ever opened, with one exception: a snapshot in Hugging Face's cache is made of
symlinks into the `blobs` folder of the same cached repository.
"""

import contextlib
import json
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from florence_jax.checkpoint.errors import CheckpointError, clip
from florence_jax.runtime.atomic_dir import DirectoryError, atomic_directory
from florence_jax.runtime.text_file import TextFileError, read_bytes

# Published configs are under 10 kB and the published indices under 200 kB.
_MAX_JSON_BYTES = 8 << 20
# The published tokenizers have under 4 MB; these are copied and never parsed here.
MAX_METADATA_BYTES = 128 << 20


@contextlib.contextmanager
def checkpoint_directory(
    destination: Path, *, overwrite: bool = False, marker: str = "config.json"
) -> Iterator[Path]:
    """`atomic_directory` for a checkpoint or an adapter.

    Raises:
        CheckpointError: where `atomic_directory` raises DirectoryError.
    """
    try:
        with atomic_directory(destination, overwrite=overwrite, marker=marker) as new:
            yield new
    except DirectoryError as error:
        raise CheckpointError(str(error)) from error


def contained_file(directory: Path, name: str) -> Path:
    """The real path of the regular file `name` of `directory`.

    Args:
        directory: the checkpoint directory.
        name: a relative file name, possibly from an untrusted index.

    Raises:
        CheckpointError: the name or its symlinks leave the directory, or it is no regular file.
        FileNotFoundError: there is no such file.
    """
    parts = PurePosixPath(name).parts
    unsafe = (
        not name
        or "\0" in name
        or "\\" in name
        or name.startswith("/")
        or PureWindowsPath(name).drive
        or ".." in parts
    )
    if unsafe:
        raise CheckpointError(
            f"{directory}: refused the file name {clip(name)!r}: it must be a relative path inside "
            "the checkpoint directory"
        )
    root = directory.resolve()
    try:
        # strict: also raises FileNotFoundError for a dangling symlink.
        real = (root / name).resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError, UnicodeError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise CheckpointError(f"{directory}: cannot open {clip(name)!r}: {error}") from error
    if not real.is_relative_to(root) and not _is_hub_cache_blob(root, real):
        raise CheckpointError(
            f"{directory}: refused {clip(name)!r}: it is a symlink to {real}, outside the "
            "checkpoint directory. If you trust it, replace the link by the file, or load the "
            "directory that holds it"
        )
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{directory}: {clip(name)!r} is not a regular file")
    return real


def has_file(directory: Path, name: str) -> bool:
    """Whether `directory` has a file `name`; raises CheckpointError as `contained_file` does."""
    try:
        contained_file(directory, name)
    except FileNotFoundError:
        return False
    return True


def _is_hub_cache_blob(root: Path, real: Path) -> bool:
    """Whether `real` is a blob of the cached repository that the snapshot `root` belongs to.

    In `models--org--name`, `snapshots/<commit>/<file>` links to `../../blobs/<hash>`.
    """
    repository = root.parent.parent
    return (
        root.parent.name == "snapshots"
        and repository.name.startswith("models--")
        and real.parent == repository / "blobs"
    )


def parse_json(text: bytes, what: str) -> Any:
    """Strict JSON: UTF-8 (a byte-order mark is skipped), no duplicate keys, no runaway nesting.

    Raises:
        CheckpointError: `what` is not such JSON.
    """
    try:
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{what} is not valid JSON: {clip(str(error))}. Is the download complete?"
        ) from error


def _without_duplicates(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"duplicate key {clip(key)!r}")
        result[key] = value
    return result


def contained_bytes(directory: Path, name: str, max_bytes: int) -> bytes:
    """The content of the regular file `name` of `directory`.

    Raises:
        CheckpointError: as `contained_file`, or it is larger than `max_bytes`.
        FileNotFoundError: there is no such file.
    """
    try:
        return read_bytes(contained_file(directory, name), max_bytes=max_bytes)
    except TextFileError:
        raise CheckpointError(
            f"{directory / name} is larger than {max_bytes} bytes: at most {max_bytes} are read, "
            "and no published file of that name has as many"
        ) from None


def read_json_object(directory: Path, name: str) -> dict[str, Any] | None:
    """The JSON object in file `name` of `directory`; None where there is no such file.

    Raises:
        CheckpointError: the file leaves the directory, is over 8 MiB or is not a JSON object.
    """
    try:
        content = contained_bytes(directory, name, _MAX_JSON_BYTES)
    except FileNotFoundError:
        return None
    value = parse_json(content, str(directory / name))
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{directory / name} holds a JSON {type(value).__name__}, expected an object"
        )
    return value
