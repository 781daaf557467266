"""An adapter's directory where a model is expected: its base with the adapter added, kept on disk.

The merged checkpoint goes to `$XDG_CACHE_HOME/florence-jax/merged` (`~/.cache/florence-jax/merged`)
under a digest of the adapter's and the base's files, so that it is made once. Nothing is ever
removed there: delete the directory at will.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from florence_jax.adapters.adapter import merge
from florence_jax.adapters.peft import is_adapter, read_peft
from florence_jax.checkpoint.errors import CheckpointError, clip
from florence_jax.checkpoint.hub import resolve
from florence_jax.checkpoint.load import plan_checkpoint
from florence_jax.checkpoint.native.manifest import MANIFEST
from florence_jax.checkpoint.native.save import save_checkpoint
from florence_jax.checkpoint.param_tree import insert
from florence_jax.checkpoint.pytorch.read_tensor import leaf_dtype


def merged_checkpoint(adapter: Path) -> Path:
    """The directory of the checkpoint that `adapter`, a PEFT directory, makes of its base.

    Raises:
        CheckpointError: it names no base, the base cannot be had, or the two do not fit.
    """
    updates = read_peft(adapter)
    base = base_of(adapter)
    target = _cache() / f"{adapter.resolve().name}-{_digest(adapter, base)[:24]}"
    if (target / MANIFEST).is_file():
        return target
    plan = plan_checkpoint(base, verify=True)
    params: dict[str, Any] = {}
    for path, entry in plan.sources.items():
        leaf_dtype(entry, None)  # refuses a dtype that parameters do not have
        insert(params, path, entry.transform.to_ours(entry.tensor.view()))
    merged = merge(params, plan.config, updates)
    save_checkpoint(target, merged.config, merged.params, files=base, overwrite=True)
    return target


def base_of(adapter: Path, *, weights: bool = True) -> Path:
    """The directory of the model that the adapter in this PEFT directory was trained on.

    Args:
        weights: False gets the base's configuration, tokenizer and processor files alone.

    Raises:
        CheckpointError: adapter_config.json names none, or another adapter, or it cannot be had.
    """
    config = read_peft(adapter).peft_config or {}
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    remedy = f"merge it yourself: python -m convert.merge_lora {adapter} BASE DEST"
    if not isinstance(name, str) or not name:
        raise CheckpointError(
            f"{adapter}: adapter_config.json names no base_model_name_or_path, so this adapter "
            f"makes no model; {remedy}"
        )
    # A relative path is meant from where training ran; beside the adapter is the next guess.
    place = next((p for p in (Path(name), adapter / name) if p.is_dir()), None)
    if place is not None and is_adapter(place):
        raise CheckpointError(
            f"{adapter}: its base {clip(name)} is an adapter too; {remedy}, base first"
        )
    revision = revision if isinstance(revision, str) and place is None else None
    try:
        return resolve(place or name, revision or None, weights=weights)
    except CheckpointError as error:
        raise CheckpointError(
            f"{adapter}: the base model of this adapter cannot be had ({error}); with a copy of "
            f"it, {remedy}"
        ) from error


def _digest(adapter: Path, base: Path) -> str:
    """Of the adapter's bytes, and of the base's files by name, size and time of change."""
    digest = hashlib.sha256(str(base.resolve()).encode("utf-8", "surrogateescape"))
    for path in sorted(adapter.glob("adapter_*")):
        if path.is_file():
            digest.update(path.name.encode("utf-8", "surrogateescape") + b"\0")
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    for path in sorted(base.rglob("*")):
        if path.is_file():
            found = path.stat()
            digest.update(
                f"{path.relative_to(base)!r} {found.st_size} {found.st_mtime_ns}".encode()
            )
    return digest.hexdigest()


def _cache() -> Path:
    # The XDG specification ignores a relative path.
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    root = given if given.is_absolute() else Path.home() / ".cache"
    return root / "florence-jax" / "merged"
