"""The manifest of a run: `run.json`, or `_run.json` beside Parquet.

It pins the inputs, the job and the blocks. The first process of a run writes it; every later one,
on this host or another, must be about to do the very same, or it is refused by the names of the
fields that differ.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from florence_jax.batch.blocks import Blocks, is_block_name
from florence_jax.batch.job import Source
from florence_jax.runtime.atomic_file import write_once
from florence_jax.runtime.jsonl import json_text
from florence_jax.runtime.text_file import MAX_SETTINGS_BYTES, parse_json, read_bytes

if TYPE_CHECKING:
    from florence_jax.inference.base_pipeline import BasePipeline

MANIFEST = "run.json"
# Readers of a directory of Parquet files skip names that begin with an underscore.
PARQUET_MANIFEST = "_run.json"
FORMAT = "florence-jax run"
VERSION = 2
_SHOWN = 200


class RunError(ValueError):
    """A run cannot begin or go on; the message says why and what to do."""


def pipeline_fingerprint(pipeline: BasePipeline) -> dict[str, Any]:
    """Everything of a pipeline that its answers depend on, as JSON.

    These are the weights, tokenizer, image settings, compatibility mode and mesh, and the software
    and device: another jax, another kind of device or another division of the weights rounds
    otherwise, so that answers would still be right, but not the same.
    """
    import jax

    import florence_jax
    from florence_jax.export.manifest import weights_sha256

    params = pipeline.programs.params
    mesh = getattr(getattr(pipeline, "model", None), "mesh", None)
    return ({} if mesh is None else {"mesh": dict(mesh.shape)}) | {
        "weights": {
            "sha256": weights_sha256(params),
            "dtypes": sorted({str(leaf.dtype) for leaf in jax.tree.leaves(params)}),
        },
        "tokenizer": pipeline.tokenizer.sha256(),
        "image": dataclasses.asdict(pipeline.image_config),
        "compat": pipeline.compat or "florence_jax",
        "software": {"florence_jax": florence_jax.__version__, "jax": jax.__version__},
        "device": jax.local_devices()[0].device_kind,
        "matmul_precision": pipeline.programs.matmul_precision,
    }


def listing(source: Source) -> tuple[dict[str, Any], np.ndarray]:
    """The manifest's record of the inputs: count, sha256 of all ids, and the source's fingerprint.

    Returns:
        The record, and the `id_key` of every input in order.

    Raises:
        RunError: two inputs have one id, or there are none.
    """
    digest, keys = hashlib.sha256(), np.empty(len(source), np.uint64)
    for number, name in enumerate(source.ids()):
        # As Parquet holds ids, which has no file name that is not UTF-8.
        encoded = name.encode("utf-8", "backslashreplace")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
        keys[number] = id_key(name)
    if not len(keys):
        raise RunError("the inputs name no image: there is nothing to run")
    _check_unique(source, keys)
    record = {
        "count": len(keys),
        "ids_sha256": digest.hexdigest(),
        "source": json.loads(json.dumps(source.fingerprint)),
    }
    return record, keys


def id_key(name: str) -> int:
    """64 bits of an id's digest, for comparing millions of them."""
    encoded = name.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")


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
        manifest = parse_json(read_bytes(path, max_bytes=MAX_SETTINGS_BYTES), str(path))
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
            added = parse_json(read_bytes(record, max_bytes=MAX_SETTINGS_BYTES), str(record))
            manifest["inputs"], manifest["blocks"]["ends"] = added["inputs"], added["ends"]
        except FileNotFoundError:
            return manifest
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(
                f"{record} is damaged ({error}): put back what it was, or begin anew"
            ) from None
        manifest["records"] += 1


def claim_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest into `directory`, or compare it with the existing one.

    Raises:
        RunError: the directory is of another run; the message names the fields that differ.
    """
    directory.mkdir(parents=True, exist_ok=True)
    begun = read_manifest(directory)
    if begun is None:
        content = f"{json_text(manifest, indent=1)}\n".encode()
        name = PARQUET_MANIFEST if manifest["blocks"]["format"] == "parquet" else MANIFEST
        if write_once(directory / name, content):
            return
        begun = read_manifest(directory)  # another process was first
    check_manifest(directory, begun, manifest)


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


def _check_unique(source: Source, keys: np.ndarray) -> None:
    ordered = np.sort(keys)
    suspects = set(ordered[:-1][ordered[1:] == ordered[:-1]].tolist())
    if not suspects:
        return
    seen: set[str] = set()
    for key, name in zip(keys.tolist(), source.ids(), strict=True):
        if key in suspects:
            if name in seen:
                raise RunError(
                    f"two inputs have the id {name!r}: a row could not say which of them it is "
                    "of. Leave one out, or give rows an `id` of their own"
                )
            seen.add(name)


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
