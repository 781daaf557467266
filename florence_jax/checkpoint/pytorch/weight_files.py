"""Find a directory's weight files and list their tensors: safetensors first, then torch's."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from florence_jax.checkpoint.errors import CheckpointError, ErrorCollector, sample
from florence_jax.checkpoint.files import contained_file, has_file, read_json_object
from florence_jax.checkpoint.pytorch.bin_reader import open_torch
from florence_jax.checkpoint.pytorch.lazy_tensor import LazyTensor
from florence_jax.checkpoint.pytorch.safetensors import open_safetensors

_Opener = Callable[[Path, str], list[LazyTensor]]

# In order of preference, which is transformers' own: (file, how it is opened). An index names the
# shards of its own format only.
_CANDIDATES: tuple[tuple[str, _Opener, str], ...] = (
    ("model.safetensors", open_safetensors, ".safetensors"),
    ("model.safetensors.index.json", open_safetensors, ".safetensors"),
    ("pytorch_model.bin", open_torch, ".bin"),
    ("pytorch_model.bin.index.json", open_torch, ".bin"),
)
_INDEX = ".index.json"
WEIGHT_FILES: tuple[str, ...] = tuple(name for name, _, _ in _CANDIDATES)


@dataclasses.dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint directory, listed and not read.

    Attributes:
        tensors: every tensor of every file; a name may still occur twice (once per shard).
        files: the weight files that hold them.
        unused: weight files present and passed over for a preferred one.
    """

    tensors: tuple[LazyTensor, ...]
    files: tuple[str, ...]
    unused: tuple[str, ...] = ()


def open_weights(directory: Path) -> Weights:
    """List the tensors of the best weight file of `directory`.

    Raises:
        CheckpointError: there are no weights, or a file is unsafe, damaged or incomplete.
    """
    present = [candidate for candidate in _CANDIDATES if has_file(directory, candidate[0])]
    if not present:
        raise CheckpointError(_nothing_found(directory))
    name, opener, suffix = present[0]
    unused = tuple(other for other, _, _ in present[1:])
    if not name.endswith(_INDEX):
        tensors = opener(contained_file(directory, name), str(directory / name))
        return Weights(tuple(tensors), (name,), unused)
    tensors, files = _open_shards(directory, name, opener, suffix)
    return Weights(tuple(tensors), files, unused)


def _open_shards(
    directory: Path, index: str, opener: _Opener, suffix: str
) -> tuple[list[LazyTensor], tuple[str, ...]]:
    label = str(directory / index)
    shard_of = (read_json_object(directory, index) or {}).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(f, str) for f in shard_of.values()):
        raise CheckpointError(f"{label}: weight_map must map tensor names to file names")
    problems = ErrorCollector()
    paths: dict[str, Path] = {}
    for shard in sorted(set(shard_of.values())):
        # Every name is checked before any shard is opened.
        if not shard.endswith(suffix):
            problems.add(f"shards whose name does not end in {suffix}", shard)
            continue
        try:
            paths[shard] = contained_file(directory, shard)
        except FileNotFoundError:
            problems.add("shards that the index names and the directory lacks", shard)
            problems.hint("download the missing shards again")
        except CheckpointError as error:
            problems.add("refused shards", shard, str(error))
    problems.raise_if_any(label)

    tensors: list[LazyTensor] = []
    for shard, path in paths.items():
        tensors += opener(path, str(directory / shard))
    found = {(tensor.name, tensor.file) for tensor in tensors}
    listed = {(name, str(directory / shard)) for name, shard in shard_of.items()}
    for name, file in sorted(listed - found):
        problems.add("tensors that the index lists and their shard lacks", name, Path(file).name)
    for name, file in sorted(found - listed):
        problems.add("tensors in a shard that the index does not list there", name, Path(file).name)
    problems.raise_if_any(label)
    return tensors, tuple(paths)


def _nothing_found(directory: Path) -> str:
    names = sorted(path.name for path in directory.iterdir())
    message = (
        f"{directory} holds no weights: expected one of {', '.join(WEIGHT_FILES)}; "
        f"it holds {sample(names, 12) or 'nothing'}"
    )
    if any(name.endswith((".safetensors", ".bin")) for name in names):
        message += ". Rename the file that holds the whole model to one of the expected names"
    return message
