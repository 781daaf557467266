"""The manifest of a run: `run.json`, or `_run.json` beside Parquet.

It pins the inputs, the job and the blocks. The first process of a run writes it; every later one,
on this host or another, must be about to do the very same, or it is refused by the names of the
fields that differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from florence_jax.batch.blocks import Blocks, is_block_name, read_rows
from florence_jax.batch.job import Row
from florence_jax.runtime.atomic_file import write_once
from florence_jax.runtime.jsonl import json_text
from florence_jax.runtime.text_file import MAX_SETTINGS_BYTES, read_json

MANIFEST = "run.json"
# Readers of a directory of Parquet files skip names that begin with an underscore.
PARQUET_MANIFEST = "_run.json"
FORMAT = "florence-jax run"
VERSION = 2
_SHOWN = 200


class RunError(ValueError):
    """A run cannot begin or go on; the message says why and what to do."""


def record_name(number: int) -> str:
    """The file of addition `number`, counted from 1."""
    return f"_added-{number:05d}.json"


def make_manifest(
    inputs: Mapping[str, Any], job: Mapping[str, Any], blocks: Blocks, kind: str
) -> dict[str, Any]:
    """The manifest of a run, as JSON returns it.

    Args:
        inputs: the record that `listing` made.
        job: the job's fingerprint.
        blocks: how the inputs are cut.
        kind: format of the blocks' files.
    """
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "inputs": inputs,
        "job": job,
        "blocks": {"size": blocks.size, "format": kind, "ends": blocks.ends},
    }
    return json.loads(json.dumps(manifest))


def blocks_of_manifest(manifest: Mapping[str, Any]) -> Blocks:
    """The blocks that a manifest describes."""
    return Blocks(
        total=manifest["inputs"]["count"],
        size=manifest["blocks"]["size"],
        ends=tuple(manifest["blocks"]["ends"]),
    )


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of `directory` with all additions; None if no run has begun there.

    Its field `records` counts the additions.

    Raises:
        RunError: this release cannot read the manifest, or there are blocks without one.
    """
    path = directory / MANIFEST
    if not path.exists() and (directory / PARQUET_MANIFEST).exists():
        path = directory / PARQUET_MANIFEST
    try:
        manifest = read_json(path, max_bytes=MAX_SETTINGS_BYTES)
    except FileNotFoundError:
        if directory.is_dir() and any(is_block_name(file.name) for file in directory.iterdir()):
            raise RunError(
                f"{directory} holds blocks and no {MANIFEST}: nothing says what they answer. Put "
                "it back, or name another directory"
            ) from None
        return None
    except ValueError as error:
        raise RunError(
            f"{path} is damaged ({error}): put back what it was, or begin anew"
        ) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise RunError(f"{path} is not the manifest of a run: name another directory")
    if manifest.get("version") != VERSION:
        raise RunError(
            f"{path} is of version {manifest.get('version')!r}, this release reads {VERSION}: use "
            "the florence-jax that began the run"
        )
    if not isinstance(manifest.get("blocks", {}), dict):
        raise RunError(f"{path} is damaged (blocks is no object): put back what it was")
    if path.name == MANIFEST and manifest.get("blocks", {}).get("format") == "parquet":
        raise RunError(
            f"{path} is of an earlier release, whose Parquet had answers as JSON text: use the "
            "florence-jax that began the run, or name another directory"
        )
    manifest["records"] = 0
    while True:
        record = directory / record_name(manifest["records"] + 1)
        try:
            added = read_json(record, max_bytes=MAX_SETTINGS_BYTES)
            manifest["inputs"], manifest["blocks"]["ends"] = added["inputs"], added["ends"]
        except FileNotFoundError:
            return manifest
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(
                f"{record} is damaged ({error}): put back what it was, or begin anew"
            ) from None
        manifest["records"] += 1


def read_run(directory: Path) -> Iterator[Row]:
    """The rows of a finished run, block by block.

    Raises:
        RunError: no run has begun in `directory`.
        OSError, ValueError: a block is missing or damaged.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        raise RunError(f"{directory} holds no {MANIFEST}: no run has begun there")
    for name in blocks_of_manifest(manifest).names(manifest["blocks"]["format"]):
        yield from read_rows(directory / name)


def claim_manifest(directory: Path, manifest: Mapping[str, Any]) -> bool:
    """Write the manifest into `directory`; False if another process was first."""
    name = PARQUET_MANIFEST if manifest["blocks"]["format"] == "parquet" else MANIFEST
    return write_once(directory / name, f"{json_text(manifest, indent=1)}\n".encode())


def check_manifest(
    directory: Path,
    begun: Mapping[str, Any] | None,
    manifest: Mapping[str, Any],
    *,
    of_inputs: bool = True,
) -> None:
    """Refuse a run that is not the one that has begun in `directory`.

    Args:
        directory: for the message.
        begun: its manifest; None accepts any run.
        manifest: the run that is about to go on.
        of_inputs: compare the inputs too; False if some are about to be added.

    Raises:
        RunError: the message names the fields that differ.
    """
    if begun is None:
        return
    differing = list(manifest_differences(begun, manifest, of_inputs=of_inputs))
    if differing:
        raise RunError(
            f"{directory} is of another run; different are:\n"
            + "\n".join(f"  {line}" for line in differing)
            + "\nRun what it was begun with, or name another directory"
        )


def manifest_differences(
    there: Mapping[str, Any], here: Mapping[str, Any], *, of_inputs: bool
) -> Iterator[str]:
    """The fields in which two manifests describe different runs; see `check_manifest`."""
    return _differences(_compared(there, of_inputs), _compared(here, of_inputs))


def _compared(manifest: Mapping[str, Any], of_inputs: bool) -> dict[str, Any]:
    """The fields that all manifests of one run share."""
    kept = {name: value for name, value in manifest.items() if name != "records"}
    if not of_inputs:
        kept["inputs"] = {"source": kept["inputs"]["source"]}
        kept["blocks"] = {**kept["blocks"], "ends": []}
    return kept


def _differences(there: Any, here: Any, place: str = "") -> Iterator[str]:
    """The fields in which two JSON values differ, with both values."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for name in dict.fromkeys([*there, *here]):
            yield from _differences(
                there.get(name, "nothing"), here.get(name, "nothing"), f"{place}.{name}"
            )
    elif there != here:
        yield f"{place[1:]}: {_clipped(there)} there, {_clipped(here)} here"


def _clipped(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
