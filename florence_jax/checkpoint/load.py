"""Load a published or fine-tuned Florence-2 checkpoint into a plain dict of jax arrays.

jax is imported when parameters are read, so planning and inspecting do not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from florence_jax.checkpoint.hub import is_saved, resolve
from florence_jax.checkpoint.native.reader import open_native
from florence_jax.checkpoint.param_tree import insert
from florence_jax.checkpoint.plan import LoadPlan, Report, Source
from florence_jax.checkpoint.pytorch.match import plan_pytorch
from florence_jax.checkpoint.pytorch.read_tensor import checked_dtype, fetch, leaf_dtype
from florence_jax.config import Florence2Config
from florence_jax.runtime.terminal_bar import terminal_bar

if TYPE_CHECKING:
    import jax
    from jax.sharding import Sharding


class Checkpoint(NamedTuple):
    """A loaded checkpoint: the model's config, its parameters, and what loading found."""

    config: Florence2Config
    params: dict[str, Any]
    report: Report


def load_checkpoint(
    source: str | Path,
    dtype: Any = None,
    sharding: Sharding | Callable[[str], Sharding] | None = None,
    *,
    revision: str | None = None,
    ignore: Sequence[str] = (),
    verify: bool = True,
    progress: bool = False,
) -> Checkpoint:
    """Load a checkpoint, each parameter straight to its dtype and devices.

    Only the slices that this process's devices hold are read. A PyTorch file is memory-mapped, cast
    and transposed in one pass, so host memory beyond the loaded arrays is that of one tensor. What
    `save_checkpoint` wrote is restored by Orbax, which without a sharding holds the whole model in
    host memory for a moment.

    Args:
        source: a directory with config.json and weights (safetensors, `.bin` with the extra
            "torch", or what `save_checkpoint` wrote), or a Hugging Face id such as
            "microsoft/Florence-2-base-ft".
        dtype: "float32", "bfloat16" or "float16" for every parameter; None keeps the stored ones.
        sharding: where the parameters go: one Sharding for all, or a function from a parameter's
            path ("encoder/layers/0/fc1/kernel") to its Sharding; None means jax's default device.
        revision: branch, tag or commit of a Hugging Face id.
        ignore: regular expressions for tensors to leave out (each matches a whole name in the
            file), for checkpoints that carry more than a Florence-2.
        verify: compare every file of a saved checkpoint with its manifest before anything is used.
            Without it a flipped bit in an array goes unnoticed.
        progress: show a progress bar on stderr.

    Returns:
        (config, params, report). `params` is a plain nested dict of `jax.Array`, with the keys and
        shapes of `florence_jax.model.abstract_params(config)`. `config` has the sizes of the
        tensors, and `tie_word_embeddings` and `final_logits_bias` as the values require.

    Raises:
        CheckpointError: the checkpoint cannot be loaded; the message lists every problem.
        ConfigError: config.json describes a model that this library does not support.
        ValueError: `dtype` is not one of the three.
    """
    if dtype is not None:
        checked_dtype(dtype)  # before anything is downloaded
    directory = resolve(source, revision=revision)
    plan = plan_checkpoint(directory, ignore=ignore, verify=verify, progress=progress)
    return Checkpoint(plan.config, read_params(plan, dtype, sharding, progress), plan.report)


def plan_checkpoint(
    directory: Path, *, ignore: Sequence[str] = (), verify: bool = False, progress: bool = False
) -> LoadPlan:
    """Work out what the checkpoint in `directory` is, reading only headers and token tables.

    Args:
        directory: holds config.json and weights; see `florence_jax.checkpoint.resolve`.
        ignore: regular expressions for tensors to leave out (each matches a whole name).
        verify: compare every file of a saved checkpoint with its manifest first.
        progress: show a progress bar on stderr while verifying.

    Raises:
        CheckpointError: one error with every problem: missing, unexpected or duplicate tensors,
            wrong shapes and dtypes, sizes on which config.json and the tensors disagree.
        ConfigError: config.json describes a model that this library does not support.
    """
    if is_saved(directory):
        return open_native(directory, ignore=ignore, verify=verify, progress=progress)
    return plan_pytorch(directory, ignore=ignore)


def read_params(
    plan: LoadPlan,
    dtype: Any = None,
    sharding: Sharding | Callable[[str], Sharding] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Read the parameters of a planned checkpoint.

    Arguments, result and errors are those of `load_checkpoint`.
    """
    target = None if dtype is None else checked_dtype(dtype)
    if plan.saved is not None:
        leaves = plan.saved.restore(target, sharding)
    else:
        leaves = _read_pytorch(plan, target, sharding, progress)
    params: dict[str, Any] = {}
    for path, leaf in leaves.items():
        insert(params, path, leaf)
    return params


def _read_pytorch(
    plan: LoadPlan,
    target: np.dtype | None,
    sharding: Sharding | Callable[[str], Sharding] | None,
    progress: bool,
) -> dict[str, jax.Array]:
    total = sum(entry.tensor.nbytes for entry in plan.sources.values())
    leaves = {}
    with terminal_bar(
        total=total, desc="loading", unit="B", unit_scale=True, shown=progress
    ) as progress_bar:
        for path, entry in plan.sources.items():
            placement = sharding(path) if callable(sharding) else sharding
            leaves[path] = _place(entry, leaf_dtype(entry, target), placement)
            progress_bar.update(entry.tensor.nbytes)
    return leaves


def _place(entry: Source, dtype: np.dtype, sharding: Sharding | None) -> jax.Array:
    import jax

    view = entry.transform.to_ours(entry.tensor.view())
    if sharding is None:
        array = jax.device_put(fetch(entry, view, dtype))
    else:
        # Devices that hold the same slice share one copy of it.
        fetched: dict[str, np.ndarray] = {}

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            key = repr(index)
            if key not in fetched:
                fetched[key] = fetch(entry, view if index is None else view[index], dtype)
            return fetched[key]

        array = jax.make_array_from_callback(view.shape, sharding, part)
    # Transfers are asynchronous and keep the host's copy alive: without waiting, a fast reader
    # would pile up the whole model in host memory.
    return jax.block_until_ready(array)
