"""Merge a PEFT adapter into its base model, from directories to a PyTorch checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from florence_jax.adapters.adapter import Adapter
from florence_jax.adapters.merge import merge
from florence_jax.adapters.peft import read_adapter
from florence_jax.checkpoint import Report, plan_checkpoint, resolve
from florence_jax.checkpoint.param_tree import insert
from florence_jax.checkpoint.pytorch.key_map import Naming
from florence_jax.checkpoint.pytorch.read_tensor import checked_dtype, leaf_dtype
from florence_jax.checkpoint.pytorch.save import save_torch
from florence_jax.runtime.atomic_dir import check_apart


@dataclasses.dataclass(frozen=True)
class MergeReport:
    """The result of a merge: what was read, decided and written.

    Attributes:
        adapter: the adapter.
        base: what loading the base model found.
        naming: of the tensors written.
        tensors: their number.
        nbytes: their size.
        dtypes: their dtypes.
        notes: what merging decided, one sentence each.
    """

    adapter: Adapter
    base: Report
    naming: Naming
    tensors: int
    nbytes: int
    dtypes: frozenset[str]
    notes: tuple[str, ...]


def merge_lora(
    adapter: str | Path,
    base: str | Path,
    destination: str | Path,
    *,
    dtype: str | None = None,
    naming: Naming | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> MergeReport:
    """Merge one adapter and write the model; weights that no update touches are never copied.

    Args:
        adapter: directory of a PEFT adapter.
        base: directory or hub id of the base model, in either naming or in our format.
        destination: directory to write.
        dtype: "float32", "bfloat16" or "float16"; None keeps each parameter's own.
        naming: of the tensors and config.json to write; None is the base model's.
        revision: branch, tag or commit of a hub id.
        overwrite: replace an existing checkpoint.
        progress: show progress bars on stderr.

    Raises:
        CheckpointError, ConfigError, ValueError: what is wrong, and what to do.
    """
    target = None if dtype is None else checked_dtype(dtype)
    updates = read_adapter(adapter)
    directory, destination = resolve(base, revision), Path(destination).expanduser()
    for source in (directory, Path(adapter).expanduser()):
        check_apart(source, destination)
    plan = plan_checkpoint(directory, verify=True, progress=progress)
    params: dict[str, Any] = {}
    for path, entry in plan.sources.items():
        leaf_dtype(entry, target)  # refuses a dtype that parameters do not have
        insert(params, path, entry.transform.to_ours(entry.tensor.view()))
    merged = merge(params, plan.config, updates, dtype=target, progress=progress)
    naming = naming or plan.report.naming
    written = save_torch(
        destination,
        merged.config,
        merged.params,
        naming,
        files=directory,
        pad_image_row=False,
        overwrite=overwrite,
    )
    return MergeReport(
        adapter=updates,
        base=plan.report,
        naming=naming,
        tensors=len(written),
        nbytes=sum(array.nbytes for array in written.values()),
        dtypes=frozenset(array.dtype.name for array in written.values()),
        notes=merged.notes,
    )
