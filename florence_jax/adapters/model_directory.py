"""Resolve a model's name to a checkpoint directory; a PEFT adapter is merged into its base.

The merged checkpoint goes to
`$XDG_CACHE_HOME/florence-jax/merged` (`~/.cache/florence-jax/merged`) under a digest of the
adapter's and the base's files, so that it is made once. Nothing is ever removed there: delete the
directory at will.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from florence_jax.adapters.merge import merge_lora
from florence_jax.adapters.peft import read_adapter
from florence_jax.checkpoint import CheckpointError, resolve
from florence_jax.checkpoint.errors import clip
from florence_jax.checkpoint.hub import has_weights
from florence_jax.checkpoint.repository import is_adapter


def resolve_model(
    source: str | Path,
    revision: str | None = None,
    *,
    adapter: str | Path | None = None,
    weights: bool = True,
) -> Path:
    """The local directory of the checkpoint that a model's name stands for.

    Every function and command that takes a model accepts the same names.

    Args:
        source: what `florence_jax.checkpoint.resolve` takes; or the directory or hub id of a PEFT
            adapter, which is merged into the base model that it names.
        revision: branch, tag or commit of a hub id.
        adapter: directory or hub id of a PEFT adapter to merge into `source`.
        weights: False gets the configuration, tokenizer and processor files alone, which are the
            base model's.

    Raises:
        CheckpointError: there is no such directory or id, it cannot be downloaded, or adapter and
            base do not fit.
    """
    directory = resolve(source, revision, weights=weights)
    if is_adapter(directory) and not has_weights(directory):
        if adapter is not None:
            raise CheckpointError(
                f"{source} is an adapter itself: merge the two into their base one by one, "
                "python -m convert.merge_lora"
            )
        adapter, directory = directory, base_of(directory, weights=weights)
    if adapter is None or not weights:
        return directory
    return _merged(resolve(adapter), directory)


def _merged(adapter: Path, base: Path) -> Path:
    """The cached directory of `adapter` merged into `base`."""
    target = _cache() / f"{adapter.resolve().name}-{_digest(adapter, base)[:24]}"
    if not (target / "config.json").is_file():  # the directory appears when it is complete
        merge_lora(adapter, base, target, overwrite=True)
    return target


def base_of(adapter: Path, *, weights: bool = True) -> Path:
    """The directory of the model that the adapter in this PEFT directory was trained on.

    Args:
        weights: False gets the base's configuration, tokenizer and processor files alone.

    Raises:
        CheckpointError: adapter_config.json names none, or another adapter, or it cannot be had.
    """
    config = read_adapter(adapter).peft_config or {}
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
    """sha256 of the adapter's bytes, and of the base's files by name, size and time of change."""
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
