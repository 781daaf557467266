"""Rows as the bytes of a file, and back: JSON lines, or Parquet with the same content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from florence_jax.batch.job import Item, Row
from florence_jax.results.instances import result_to_json
from florence_jax.results.parquet import load_pyarrow, table_bytes, table_rows
from florence_jax.runtime.atomic_file import write_once
from florence_jax.runtime.error_text import is_of_one_input, row_error_text
from florence_jax.runtime.jsonl import json_text

RowFormat = Literal["jsonl", "parquet"]


def encode_rows(rows: Sequence[Row], kind: RowFormat) -> bytes:
    """The file that holds `rows`; equal rows give equal bytes.

    Raises:
        TypeError, ValueError: a row holds what JSON does not, or Parquet without pyarrow.
    """
    plain = [result_to_json(row) for row in rows]
    if kind == "jsonl":
        return b"".join(f"{json_text(row)}\n".encode() for row in plain)
    return table_bytes(plain)


def encode_block(rows: list[Row], kind: RowFormat) -> bytes:
    """`encode_rows`; a row that no file can hold is written as its id and the error.

    It replaces that row in `rows` too, for whoever counts errors.
    """
    try:
        return encode_rows(rows, kind)
    except Exception as error:
        if not is_of_one_input(error):
            raise
    kept = list(rows)
    for number, row in enumerate(kept):
        try:
            encode_rows([row], kind)
        except Exception as error:
            kept[number] = {
                "id": row["id"],
                "error": f"its row cannot be written: {row_error_text(error)}",
            }
    rows[:] = kept
    return encode_rows(kept, kind)


def writable(item: Item) -> Item:
    """The item, or one with an error where its row would hold what no file can: found before it is
    asked about, and without a block being lost for it."""
    try:
        result_to_json(item.extra)
        result_to_json([query.to_dict() for query in item.queries])
    except Exception as error:
        text = row_error_text(error)
        return Item(id=item.id, error=f"its row cannot be written: {text}; leave that out")
    return item


def check_format(kind: RowFormat) -> None:
    """Find out now, and not when the first block is to be written.

    Raises:
        ValueError: Parquet without pyarrow.
    """
    if kind == "parquet":
        load_pyarrow()


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file that `encode_rows` made, whose format its name tells.

    Raises:
        ValueError: the file is not one.
    """
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)
        return
    yield from table_rows(path)


def commit_block(path: Path, content: bytes) -> bool:
    """Write a block's file unless it exists, and its sha256 beside it (`digest_path`).

    Returns:
        Whether this call made the file.
    """
    made = write_once(path, content)
    if made:
        # The digest of an earlier file of this name, which somebody removed to have it made again.
        digest_path(path).unlink(missing_ok=True)
        _write_digest(path, hashlib.sha256(content).hexdigest())
    return made


def ensure_digests(directory: Path, names: Iterable[str]) -> None:
    """Write the digests that killed processes had no time for."""
    there = set(os.listdir(directory))
    for path in (directory / name for name in names):
        if digest_path(path).name not in there:
            with path.open("rb") as file:
                _write_digest(path, hashlib.file_digest(file, "sha256").hexdigest())


def digest_path(path: Path) -> Path:
    """The file with the sha256 of `path`, which `sha256sum -c` reads.

    Readers of a directory of Parquet files skip names that begin with an underscore.
    """
    hidden = "_" if path.suffix == ".parquet" else ""
    return path.with_name(f"{hidden}{path.name}.sha256")


def _write_digest(path: Path, digest: str) -> None:
    write_once(digest_path(path), f"{digest}  {path.name}\n".encode())
