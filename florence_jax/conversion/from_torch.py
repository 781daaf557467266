"""Convert a published or fine-tuned PyTorch checkpoint to this library's format."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from florence_jax.adapters import resolve_model
from florence_jax.checkpoint import LoadPlan, Manifest, plan_checkpoint, read_config
from florence_jax.checkpoint.decoding_settings import decoding_settings
from florence_jax.checkpoint.native.save import Leaf, save_leaves
from florence_jax.checkpoint.plan import Source
from florence_jax.checkpoint.pytorch.read_tensor import checked_dtype, fetch, leaf_dtype
from florence_jax.runtime.atomic_dir import check_apart

_GENERATION = "generation_config.json"


@dataclasses.dataclass(frozen=True)
class Conversion:
    """The result of a conversion: what was read and what was written."""

    plan: LoadPlan
    manifest: Manifest

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters written."""
        return sum(parameter.nbytes for parameter in self.manifest.parameters)


def from_torch(
    source: str | Path,
    destination: str | Path,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    ignore: Sequence[str] = (),
    overwrite: bool = False,
    progress: bool = False,
) -> Conversion:
    """Convert one checkpoint; its parameters are in host memory while Orbax writes them.

    Args:
        source: directory or hub id of a checkpoint in either naming, or one in our format.
        destination: directory to write.
        dtype: "float32", "bfloat16" or "float16"; None keeps each tensor's own.
        revision: branch, tag or commit of a hub id.
        ignore: regular expressions for names of tensors to leave out.
        overwrite: replace an existing checkpoint.
        progress: show progress bars on stderr.

    Raises:
        CheckpointError, ConfigError, ValueError: what is wrong, and what to do.
    """
    target = None if dtype is None else checked_dtype(dtype)
    directory = resolve_model(source, revision)
    check_apart(directory, Path(destination))
    plan = plan_checkpoint(directory, ignore=ignore, verify=True, progress=progress)
    repository = read_config(directory)
    settings = decoding_settings(repository.config, repository.generation)
    origin = plan.origin
    if target is not None:
        extra = dict.fromkeys(origin.extra, target.name)
        origin = dataclasses.replace(origin, extra=extra)
    manifest = save_leaves(
        Path(destination),
        plan.config,
        [_leaf(path, entry, target) for path, entry in plan.sources.items()],
        files=directory,
        origin=origin,
        extra_files={_GENERATION: json.dumps(settings, indent=2).encode() + b"\n"},
        overwrite=overwrite,
        progress=progress,
    )
    return Conversion(plan, manifest)


def _leaf(path: str, entry: Source, target: np.dtype | None) -> Leaf:
    dtype = leaf_dtype(entry, target)

    def read() -> np.ndarray:
        return fetch(entry, entry.transform.to_ours(entry.tensor.view()), dtype)

    shape = entry.transform.shape_to_ours(entry.tensor.shape)
    assert shape is not None  # planning has checked it
    return Leaf(path, shape, dtype, read)
