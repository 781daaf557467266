"""Where each parameter lies in a saved checkpoint, and the files that tell Orbax so.

`params/` is an Orbax checkpoint of the plain nested dict: an OCDBT database of uncompressed zarr
arrays, one chunk each. Orbax restores it, onto any sharding:

    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, "bfloat16",
                          sharding=sharding), abstract_params(config))
    ocp.StandardCheckpointer().restore(directory / "params", target)

and since a chunk is the array's plain bytes, this library maps them from the file instead. Values
are laid out in the order of their paths, so equal parameters make equal files.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence

import numpy as np

from florence_jax.checkpoint.native.ocdbt import Inline, Stored, Value, encode_manifest, encode_node

ARRAYS = "params"
_INDEX = "d/index"
# Few files, yet enough of them to be hashed and copied in parallel.
_FILE_BYTES = 512 << 20
# So that every value starts aligned for any dtype and for vector loads.
_ALIGNMENT = 64
_ZARR_DTYPES = {"float32": "<f4", "float16": "<f2", "bfloat16": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class ArrayLocation:
    """One parameter and its bytes, in C order.

    Attributes:
        path: "encoder/layers/0/fc1/kernel".
        shape: its shape.
        dtype: float32, float16 or bfloat16.
        file: the data file, relative to the checkpoint directory.
        offset: its first byte in `file`.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    file: str
    offset: int

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def layout(
    parameters: Iterable[tuple[str, tuple[int, ...], np.dtype]],
) -> tuple[ArrayLocation, ...]:
    """Give every (path, shape, dtype) its place; a function of the set alone, not of its order."""
    placed: list[ArrayLocation] = []
    number, offset = 0, 0
    for path, shape, dtype in sorted(parameters, key=lambda parameter: parameter[0]):
        nbytes = math.prod(shape) * dtype.itemsize
        if offset and offset + nbytes > _FILE_BYTES:
            number, offset = number + 1, 0
        placed.append(ArrayLocation(path, shape, dtype, f"{ARRAYS}/d/arrays-{number:05}", offset))
        offset += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
    return tuple(placed)


def index_files(placed: Sequence[ArrayLocation]) -> dict[str, bytes]:
    """The files beside the data: name, relative to the checkpoint directory, and content."""
    entries: dict[str, Value] = {}
    for parameter in placed:
        key = parameter.path.replace("/", ".")
        chunk = ".".join("0" * len(parameter.shape))
        entries[f"{key}/.zarray"] = Inline(_zarray(parameter))
        entries[f"{key}/{chunk}"] = Stored(
            parameter.file.removeprefix(f"{ARRAYS}/"), parameter.offset, parameter.nbytes
        )
    node = encode_node(entries)
    return {
        f"{ARRAYS}/{_INDEX}": node,
        f"{ARRAYS}/manifest.ocdbt": encode_manifest(entries, Stored(_INDEX, 0, len(node))),
        f"{ARRAYS}/_METADATA": _dump(_tree_metadata(placed)),
        f"{ARRAYS}/_CHECKPOINT_METADATA": _dump(_ITEM_METADATA),
    }


def _zarray(parameter: ArrayLocation) -> bytes:
    return _dump(
        {
            "chunks": list(parameter.shape),
            "compressor": None,
            "dimension_separator": ".",
            "dtype": _ZARR_DTYPES[parameter.dtype.name],
            "fill_value": None,
            "filters": None,
            "order": "C",
            "shape": list(parameter.shape),
            "zarr_format": 2,
        }
    )


def _tree_metadata(placed: Sequence[ArrayLocation]) -> dict[str, object]:
    tree = {}
    for parameter in placed:
        keys = tuple(parameter.path.split("/"))
        tree[str(keys)] = {
            "key_metadata": [{"key": key, "key_type": 2} for key in keys],  # 2: a dict's key
            "value_metadata": {
                # Not "jax.Array", which Orbax restores only where it is told a sharding.
                "value_type": "np.ndarray",
                "skip_deserialize": False,
                "write_shape": list(parameter.shape),
            },
        }
    return {
        "tree_metadata": tree,
        "use_ocdbt": True,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }


# Orbax writes the time of the save here, which would make every save differ.
_ITEM_METADATA = {
    "item_handlers": "orbax.checkpoint._src.handlers.pytree_checkpoint_handler."
    "PyTreeCheckpointHandler",
    "metrics": {},
    "performance_metrics": {},
    "init_timestamp_nsecs": 0,
    "commit_timestamp_nsecs": 0,
    "custom_metadata": {},
}


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
