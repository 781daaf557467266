"""The arrays of a saved checkpoint, written and restored by Orbax.

`params/` is an Orbax checkpoint of the plain nested dict, which Orbax restores onto any sharding
without this library:

    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, "bfloat16",
                          sharding=sharding), abstract_params(config))
    ocp.StandardCheckpointer().restore(directory / "params", target)

Orbax and jax are imported when arrays are read or written, so that checkpoints are inspected and
verified without them.
"""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from florence_jax.checkpoint.errors import CheckpointError, ErrorCollector, clip
from florence_jax.checkpoint.param_tree import flatten, unflatten
from florence_jax.checkpoint.repository import ARRAYS
from florence_jax.runtime.orbax_failures import quiet_failures

if TYPE_CHECKING:
    import jax
    from jax.sharding import Sharding

# A device that holds a part of an array reads whole chunks.
_CHUNK_BYTES = 4 << 20
# Several files are hashed in parallel.
_FILE_BYTES = 256 << 20
_FLOAT16 = np.dtype(np.float16)


@dataclasses.dataclass(frozen=True)
class ArrayEntry:
    """One parameter of a saved checkpoint.

    Attributes:
        path: "encoder/layers/0/fc1/kernel".
        shape: its shape.
        dtype: float32, float16 or bfloat16.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Its size in memory."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_arrays(directory: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by path to `directory / "params"`; nothing is synced to the disk yet.

    Raises:
        OSError: the disk is full, or the system refuses for another reason.
    """
    needed = sum(array.nbytes for array in arrays.values())
    if shutil.disk_usage(directory).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))

    import jax
    import orbax.checkpoint as ocp

    if jax.process_index():
        raise CheckpointError(
            f"{directory}: Orbax writes arrays of the host from process 0 only, this is process "
            f"{jax.process_index()}: save there"
        )
    tree = unflatten(arrays)
    save_args = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree)
    arguments = ocp.args.PyTreeSave(
        tree, save_args=save_args, ocdbt_target_data_file_size=_FILE_BYTES
    )
    alone = _this_process()
    quiet_failures()
    try:
        with ocp.Checkpointer(_handler(), multiprocessing_options=alone) as checkpointer:
            checkpointer.save(directory.absolute() / ARRAYS, args=arguments)
    except ValueError as error:
        # TensorStore keeps the number of the system's error in the text.
        number = re.search(r"os_error_code='(\d+)'", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(directory)) from error


@dataclasses.dataclass(frozen=True)
class SavedArrays:
    """The arrays of a saved checkpoint, not read yet.

    Attributes:
        directory: the checkpoint's directory.
        entries: what the manifest lists, by path.
    """

    directory: Path
    entries: Mapping[str, ArrayEntry]

    def restore(
        self,
        dtype: np.dtype | None,
        sharding: Sharding | Callable[[str], Sharding] | None,
        prefix: str = "",
    ) -> dict[str, jax.Array]:
        """Every parameter whose path starts with `prefix`, by path, read by Orbax.

        With a sharding, a process reads the parts that its devices hold. Without one, the arrays
        are in host memory for a moment before they are on jax's default device.

        Args:
            dtype: of every parameter; None keeps the stored ones.
            sharding: one for all, or a function from a parameter's path to its own.
            prefix: start of the paths that are read.

        Raises:
            CheckpointError: Orbax finds other arrays than the manifest lists or cannot read them,
                or finite values would become infinite in float16.
        """
        import jax
        import orbax.checkpoint as ocp

        # Orbax casts what it reads, but does not say which values overflow.
        reads = None if dtype == _FLOAT16 else dtype

        def options(path: str) -> Any:
            if sharding is None:
                return ocp.RestoreArgs(restore_type=np.ndarray, dtype=reads)
            placement = sharding(path) if callable(sharding) else sharding
            return ocp.ArrayRestoreArgs(sharding=placement, dtype=reads)

        arrays = self._read(options, prefix)
        params = {}
        for path in tuple(arrays):
            array = jax.device_put(arrays.pop(path)) if sharding is None else arrays.pop(path)
            params[path] = array if dtype is None else self._cast(path, array, dtype)
        return params

    def read(self) -> dict[str, np.ndarray]:
        """Every parameter by path, in host memory and in its stored dtype.

        Raises:
            CheckpointError: Orbax finds other arrays than the manifest lists, or cannot read them.
        """
        import orbax.checkpoint as ocp

        return self._read(lambda _: ocp.RestoreArgs(restore_type=np.ndarray))

    def _read(self, options: Callable[[str], Any], prefix: str = "") -> dict[str, Any]:
        import orbax.checkpoint as ocp
        from etils import epath

        folder, handler = epath.Path(self.directory.absolute() / ARRAYS), _handler()
        wanted = [path for path in self.entries if path.startswith(prefix)]
        restore_args = unflatten({path: options(path) for path in wanted})
        part = {"item": restore_args, "partial_restore": True} if prefix else {}
        try:
            self._check(dict(flatten(handler.metadata(folder).tree)))
            arguments = ocp.args.PyTreeRestore(restore_args=restore_args, **part)
            return dict(flatten(handler.restore(folder, args=arguments)))
        except CheckpointError:
            raise
        except Exception as error:  # TensorStore and Orbax raise many types on a damaged file
            raise CheckpointError(
                f"Orbax cannot restore {self.directory / ARRAYS}: {clip(str(error), 400)}. Verify "
                "the checkpoint (verify=True), or copy or convert it again"
            ) from error

    def _check(self, stored: Mapping[str, Any]) -> None:
        """Raise CheckpointError where the stored arrays are not those of the manifest."""
        problems = ErrorCollector()
        for path in sorted(self.entries.keys() | stored.keys()):
            listed = _describe(self.entries.get(path))
            found = _describe(stored.get(path))
            if listed != found:
                problems.add(
                    "arrays that disagree with the manifest",
                    path,
                    f"{found}, the manifest says {listed}",
                )
        problems.raise_if_any(f"{self.directory / ARRAYS} is not what the manifest says")

    def _cast(self, path: str, array: jax.Array, dtype: np.dtype) -> jax.Array:
        if array.dtype == dtype:
            return array
        import jax.numpy as jnp

        cast = array.astype(dtype)
        if bool(jnp.any(jnp.isinf(cast))) and not bool(jnp.any(jnp.isinf(array))):
            raise CheckpointError(
                f"{self.directory}: {path} holds values beyond float16's 65504: load it in "
                "bfloat16 or float32"
            )
        return cast


def _describe(array: Any) -> str:
    return "absent" if array is None else f"{np.dtype(array.dtype).name}{list(array.shape)}"


def _handler() -> Any:
    import jax
    import orbax.checkpoint as ocp

    handlers = ocp.type_handlers
    # A save is synchronous: the arrays need no copy that guards against changes meanwhile.
    registry = handlers.create_type_handler_registry(
        (np.ndarray, handlers.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, handlers.ArrayHandler()),
    )
    # Float weights hardly compress, and compression takes three times as long.
    return ocp.PyTreeCheckpointHandler(
        type_handler_registry=registry,
        use_compression=False,
        multiprocessing_options=_this_process(),
    )


def _this_process() -> Any:
    """Options that let each process read and write by itself: Orbax waits for no other."""
    import jax
    import orbax.checkpoint as ocp

    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})
