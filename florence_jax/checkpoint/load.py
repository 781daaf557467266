"""Load a published or fine-tuned Florence-2 checkpoint into a plain dict of jax arrays.

Loading is a chain of values: directory -> configuration -> weight files -> tensors -> plan ->
arrays. jax is imported for the last step alone, so planning and inspecting do not wait for it.

Stored values are cast and transposed in one pass, in strips that stay in the processor's cache and
calls that release the GIL. Values of 16 bits are looked up in a table: numpy's own cast from
float16 takes nearly twice as long.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from florence_jax.checkpoint.errors import CheckpointError
from florence_jax.checkpoint.hub import resolve
from florence_jax.checkpoint.native.manifest import plan_saved
from florence_jax.checkpoint.param_tree import unflatten
from florence_jax.checkpoint.plan import FLOAT_DTYPES, LoadPlan, Report, Source
from florence_jax.checkpoint.pytorch.match import match_weights
from florence_jax.checkpoint.pytorch.weights import open_weights
from florence_jax.checkpoint.repository import find_weights, read_config, read_manifest
from florence_jax.config import Florence2Config
from florence_jax.runtime.terminal_bar import terminal_bar

if TYPE_CHECKING:
    import jax
    from jax.sharding import Sharding

_FLOAT16 = np.dtype(np.float16)
_STRIP_ELEMENTS = 1 << 16
# Rows of the file that are transposed together; more would not share the cache lines they go to.
_ROWS = 16

# Casts the second array into the first, a contiguous one of the same shape.
_Cast = Callable[[np.ndarray, np.ndarray], None]


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
    manifest = read_manifest(directory)
    repository = read_config(directory)
    if manifest is None:
        files = find_weights(directory)
        config = Florence2Config.from_hf(repository.config)
        tensors = open_weights(files)
        return match_weights(repository, config, files, tensors, ignore)
    return plan_saved(repository, manifest, ignore=ignore, verify=verify, progress=progress)


def read_params(
    plan: LoadPlan,
    dtype: Any = None,
    sharding: Sharding | Callable[[str], Sharding] | None = None,
    progress: bool = False,
    prefix: str = "",
) -> dict[str, Any]:
    """Read the parameters of a planned checkpoint, or those alone whose paths start with `prefix`.

    Other arguments, result and errors are those of `load_checkpoint`.
    """
    if plan.saved is not None:
        return unflatten(plan.saved.restore(checked_dtype(dtype), sharding, prefix))
    wanted = {path: one for path, one in plan.sources.items() if path.startswith(prefix)}
    return read_sources(wanted, dtype, sharding, progress)


def read_sources(
    sources: Mapping[str, Source],
    dtype: Any = None,
    sharding: Sharding | Callable[[str], Sharding] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Read stored tensors into a nested dict, each straight to its dtype and devices.

    Args:
        sources: path in the parameter tree -> stored tensor.
        dtype, sharding, progress: as in `load_checkpoint`, with its errors.
    """
    target = checked_dtype(dtype)
    leaves = {}
    total = sum(source.tensor.nbytes for source in sources.values())
    bar = terminal_bar(total=total, desc="loading", unit="B", unit_scale=True, shown=progress)
    with bar:
        for path, source in sources.items():
            placement = sharding(path) if callable(sharding) else sharding
            leaves[path] = _place(source, leaf_dtype(source, target), placement)
            bar.update(source.tensor.nbytes)
    return unflatten(leaves)


def _place(source: Source, dtype: np.dtype, sharding: Sharding | None) -> jax.Array:
    import jax

    view = source.view()
    if sharding is None:
        array = jax.device_put(fetch(source, view, dtype))
    else:
        # Devices that hold the same slice share one copy of it.
        fetched: dict[str, np.ndarray] = {}

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            key = repr(index)
            if key not in fetched:
                fetched[key] = fetch(source, view if index is None else view[index], dtype)
            return fetched[key]

        array = jax.make_array_from_callback(view.shape, sharding, part)
    # Transfers are asynchronous and keep the host's copy alive: without waiting, a fast reader
    # would pile up the whole model in host memory.
    return jax.block_until_ready(array)


def checked_dtype(dtype: Any) -> np.dtype | None:
    """`dtype` as one that a parameter may have; None, which keeps the stored ones, stays None.

    Raises:
        ValueError: it is not float32, bfloat16 or float16.
    """
    if dtype is None:
        return None
    message = f"dtype is {dtype!r}, expected 'float32', 'bfloat16', 'float16' or None (as stored)"
    try:
        checked = np.dtype(dtype)
    except TypeError as error:
        raise ValueError(message) from error
    if checked not in FLOAT_DTYPES:
        raise ValueError(message)
    return checked


def leaf_dtype(source: Source, target: np.dtype | None) -> np.dtype:
    """The dtype in which `source` is loaded: `target`, or for None the stored one.

    Raises:
        CheckpointError: it is stored in a dtype that jax does not keep.
    """
    if target is not None:
        return target
    stored = source.tensor.dtype
    if stored not in FLOAT_DTYPES:
        raise CheckpointError(
            f"{source.tensor.file}: {source.tensor.name} is {stored}, which jax does not keep: "
            "pass dtype='float32'"
        )
    return stored


def fetch(source: Source, view: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A fresh, C-ordered copy of `view`, which is `source`'s tensor in our layout or a part of it.

    Always a copy: on the CPU jax keeps aligned numpy memory instead of copying it, and the mapping
    of a file, which may change or shrink, must never become a parameter.

    Raises:
        CheckpointError: finite values would become infinite in float16.
    """
    array = np.empty(view.shape, dtype)
    cast_into(array, view)
    narrows = dtype == _FLOAT16 and view.dtype != _FLOAT16
    if narrows and np.isinf(array).any() and not np.isinf(view).any():
        raise CheckpointError(
            f"{source.tensor.file}: {source.tensor.name} holds values beyond float16's 65504: load "
            "it in bfloat16 or float32"
        )
    return array


def contiguous(source: Source, view: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`view` itself where it is C-ordered and of `dtype` already, or else what `fetch` gives."""
    unchanged = view.dtype == dtype and view.flags.c_contiguous and view.flags.aligned
    return view if unchanged else fetch(source, view, dtype)


def cast_into(target: np.ndarray, view: np.ndarray) -> None:
    """Fill `target` with `view`, each value rounded to the nearest, ties to even, as numpy does.

    Args:
        target: C-ordered array of float32, float16 or bfloat16.
        view: array of the same shape, of those or float64, transposed or not.

    Raises:
        ValueError: the shapes differ.
    """
    if target.shape != view.shape:
        raise ValueError(f"an array of shape {view.shape} does not fill one of {target.shape}")
    if target.size == 0:
        return
    # Both with their axes in the order in which the view lies in memory.
    order = sorted(range(view.ndim), key=lambda axis: view.strides[axis], reverse=True)
    source, target = view.transpose(order), target.transpose(order)
    with np.errstate(over="ignore", invalid="ignore"):
        if source.flags.c_contiguous and target.flags.c_contiguous:
            _cast_flat(target.reshape(-1), source.reshape(-1))
        else:
            _cast_strided(target, source)


def _cast_flat(target: np.ndarray, source: np.ndarray) -> None:
    cast = _cast(target.dtype, source.dtype, min(source.size, _STRIP_ELEMENTS))
    for start in range(0, source.size, _STRIP_ELEMENTS):
        strip = slice(start, start + _STRIP_ELEMENTS)
        cast(target[strip], source[strip])


def _cast_strided(target: np.ndarray, source: np.ndarray) -> None:
    """Cast strips of the source's rows in their own order, then spread them over the target."""
    width = source.size // len(source)
    step = min(len(source), max(_ROWS, _STRIP_ELEMENTS // width // _ROWS * _ROWS))
    strip = np.empty((step, *source.shape[1:]), target.dtype)
    cast = _cast(target.dtype, source.dtype, strip.size)
    for start in range(0, len(source), step):
        rows = source[start : start + step]
        if rows.dtype != target.dtype:
            done = strip[: len(rows)]
            cast(done, rows)
            rows = done
        for row in range(0, len(rows), _ROWS):
            target[start + row :][:_ROWS] = rows[row : row + _ROWS]


def _cast(target: np.dtype, source: np.dtype, size: int) -> _Cast:
    """The function that casts up to `size` elements at a time."""
    if source.itemsize == 2 and source != target:
        return _by_table(_table(target, source), size)
    return functools.partial(np.copyto, casting="unsafe")


def _by_table(table: np.ndarray, size: int) -> _Cast:
    indices = np.empty(size, np.intp)  # numpy would convert them at every look-up otherwise

    def cast(target: np.ndarray, source: np.ndarray) -> None:
        index = indices[: source.size].reshape(source.shape)
        index[...] = source.view(np.uint16)
        np.take(table, index, out=target.view(table.dtype), mode="clip")

    return cast


@functools.cache
def _table(target: np.dtype, source: np.dtype) -> np.ndarray:
    """The bits in `target` of each of the 65,536 values of a 16-bit `source`."""
    values = np.arange(1 << 16, dtype=np.uint16).view(source)
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(target).view(np.dtype(f"u{target.itemsize}"))
