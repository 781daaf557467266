"""Hashes of the files of a run's training rows, by which a resumed run notices changed data.

Files of rows (`.jsonl`, `.json`, `.parquet`, `.array_record`) are hashed by sha256. For a Parquet
file behind a URL only its footer is hashed, which has the size and the statistics of every column:
reading all of a bucket would take longer than many runs. Image files that rows name are not hashed;
images within rows are part of them.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from florence_jax.training.data.example import DataError
from florence_jax.training.data.sources import Named, SourceConfig
from florence_jax.training.data.storage import Place, local_copy

Pins = dict[str, dict[str, Any]]


def pin(configs: Sequence[SourceConfig], opened: Iterable[Named]) -> Pins:
    """{"rows": {source: rows}, "files": {file: sha256}} of the training data.

    Args:
        configs: of every source, that of `data.directory` included.
        opened: the same, as `training_sources` gives them.

    Raises:
        DataError: a file cannot be read.
    """
    files = {name: file for config in configs for name, file in config.files()}
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(_digest, files.values()))
    return {
        "rows": {name: len(source) for name, source, _ in opened},
        "files": dict(zip(files, digests, strict=True)),
    }


def changes(before: Mapping[str, Mapping], now: Mapping[str, Mapping]) -> list[str]:
    """A phrase for each file that differs and each source that has another number of rows."""
    phrases = []
    old, new = before["files"], now["files"]
    for file in sorted(old.keys() | new.keys()):
        if file not in new:
            phrases.append(f"{file} is no longer part of them")
        elif file not in old:
            phrases.append(f"{file} is new")
        elif old[file] != new[file]:
            phrases.append(
                f"{file} has other content (sha256 {old[file][:12]} then, {new[file][:12]} now)"
            )
    old, new = before["rows"], now["rows"]
    for source in sorted(old.keys() | new.keys()):
        then, rows = old.get(source, 0), new.get(source, 0)
        if then != rows:
            phrases.append(f"{source} had {then:,} rows and has {rows:,}")
    if phrases and old == new:
        phrases.append(f"there are {sum(new.values()):,} rows, as many as before")
    return phrases


def _digest(file: Place) -> str:
    try:
        if file.suffix == ".parquet" and not isinstance(file, Path):
            return hashlib.sha256(_footer(file)).hexdigest()
        with local_copy(file).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}") from error


def _footer(file: Place) -> bytes:
    """A Parquet file's metadata: its length is in the 8 bytes before the end, and is before it."""
    with file.open("rb") as stream:
        stream.seek(-8, 2)
        length = int.from_bytes(stream.read(4), "little")
        stream.seek(-8 - length, 2)
        return stream.read(length)
