"""`manifest.json` of a run's checkpoint: what every other file of it must be, and its own digest.

Orbax alone restores arrays with flipped bits without an error and casts a wrong dtype silently; the
manifest is what makes damage and mistakes visible.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from florence_jax.runtime.text_file import MAX_SETTINGS_BYTES, parse_json, read_bytes, read_json

MANIFEST = "manifest.json"
_FORMAT = "florence-jax-run-1"


def write_manifest(directory: Path, arrays: Mapping[str, Mapping[str, Any]]) -> None:
    """Describe every file below `directory` as it is now.

    Args:
        arrays: by name, {"shape": [...], "dtype": "..."}.
    """
    files = {name: digest(directory / name) for name in sorted(_files(directory))}
    fields = {"format": _FORMAT, "files": files, "arrays": dict(arrays)}
    (directory / MANIFEST).write_bytes(_encode(fields))


def stored_arrays(directory: Path) -> dict[str, dict[str, Any]]:
    """{"shape", "dtype"} of each array of an undamaged checkpoint, by name."""
    return read_json(directory / MANIFEST, max_bytes=MAX_SETTINGS_BYTES)["arrays"]


def damage(directory: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None. Reads every byte."""
    try:
        content = read_bytes(directory / MANIFEST, max_bytes=MAX_SETTINGS_BYTES)
        fields = parse_json(content, MANIFEST)
        fields.pop("sha256")
        files = fields["files"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST}: {error}"
    if _encode(fields) != content:
        return f"{MANIFEST} does not have the sha256 that it ends with"
    present = _files(directory)
    for name, expected in files.items():
        if name not in present:
            return f"{name} is missing"
        try:
            found = digest(directory / name)
        except OSError as error:
            return f"{name} cannot be read: {error}"
        if found != expected:
            return f"{name} has other bytes than when it was written"
    extra = sorted(present - files.keys())
    return f"{extra[0]} was not written with it" if extra else None


def digest(file: Path) -> str:
    """Hexadecimal sha256 of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _files(directory: Path) -> set[str]:
    """Every file by relative name, the manifest aside."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {file.relative_to(directory).as_posix() for file in files} - {MANIFEST}


def _encode(fields: dict[str, Any]) -> bytes:
    sha256 = hashlib.sha256(json.dumps(fields, indent=1).encode()).hexdigest()
    return json.dumps(fields | {"sha256": sha256}, indent=1).encode() + b"\n"
