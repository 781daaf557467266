"""List the tensors of a `pytorch_model.bin` as read-only views.

This is the only module of the library that imports torch. Torch's zip format contains a pickle,
which can run code, so it is only unpickled by `torch.load(weights_only=True)`, and only by a torch
whose restricted unpickler has no known hole.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from florence_jax.checkpoint.errors import CheckpointError, clip, sample
from florence_jax.checkpoint.plan import LazyTensor

_MIN_TORCH = (2, 10)
_NESTED = ("state_dict", "model")
_INSTALL = 'install the extra (pip install "florence-jax[torch]"), or convert it to safetensors'


def open_torch(path: Path, label: str, *, nested: bool = False) -> list[LazyTensor]:
    """The tensors of a torch state dict, memory-mapped and not read yet.

    Args:
        path: the file.
        label: its name for messages.
        nested: also take a state dict that lies under "state_dict" or "model".

    Raises:
        CheckpointError: torch is missing or older than 2.10, the file is not a plain state dict in
            torch's zip format, it is compressed, or its pickle holds anything but tensors.
    """
    torch = _import_torch(label)
    _check_archive(path, label)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{label} was refused: its pickle holds more than tensors, and loading it could run "
            f"code ({clip(str(error).splitlines()[0])}). Use a checkpoint in safetensors"
        ) from error
    except Exception as error:  # torch raises many types on a damaged file
        raise CheckpointError(
            f"{label} is not a readable torch file in the zip format: {clip(str(error))}. Download "
            "it again; if it was saved by torch < 1.6, save it again with a current torch"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{label} holds a {type(state).__name__}, expected a state dict")
    if nested:
        # Training programs store it beside other things, such as the epoch.
        state = next((state[key] for key in _NESTED if isinstance(state.get(key), dict)), state)
    foreign = [str(name) for name, value in state.items() if not _is_plain(torch, name, value)]
    if foreign:
        raise CheckpointError(
            f"{label} holds entries that are not plain dense tensors: {sample(foreign)}. Save the "
            "model's state_dict() alone"
        )
    return [_stored(torch, name, tensor, label) for name, tensor in state.items()]


def _check_archive(path: Path, label: str) -> None:
    """Refuse an archive that unpacks to more than its own size: torch itself never compresses."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError):
        return  # torch's older formats and damage: torch.load says which
    unpacked = sum(member.file_size for member in members)
    if unpacked > path.stat().st_size or any(member.compress_type for member in members):
        raise CheckpointError(
            f"{label} was refused: it is a compressed archive of {unpacked} bytes, and torch never "
            "compresses: it is no torch file, or was made to exhaust memory. Use a checkpoint in "
            "safetensors"
        )


def _import_torch(label: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(f"{label} needs PyTorch to be read: {_INSTALL}") from error
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < _MIN_TORCH:
        raise CheckpointError(
            f"{label}: torch {torch.__version__} is installed; its restricted unpickler has known "
            f"holes, so at least {'.'.join(map(str, _MIN_TORCH))} is required: {_INSTALL}"
        )
    return torch


def _is_plain(torch: Any, name: Any, value: Any) -> bool:
    return (
        isinstance(name, str)
        and type(value) in (torch.Tensor, torch.nn.Parameter)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _stored(torch: Any, name: str, tensor: Any, label: str) -> LazyTensor:
    tensor = tensor.detach()

    def view() -> np.ndarray:
        if tensor.dtype == torch.bfloat16:  # numpy has no such dtype: reinterpret the bits
            array = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        else:
            array = tensor.numpy()
        array.flags.writeable = False
        return array

    return LazyTensor(name, tuple(tensor.shape), _numpy_dtype(torch, tensor), label, view)


def _numpy_dtype(torch: Any, tensor: Any) -> np.dtype:
    if tensor.dtype == torch.bfloat16:
        return np.dtype(ml_dtypes.bfloat16)
    try:
        return torch.empty(0, dtype=tensor.dtype).numpy().dtype
    except TypeError:  # float8 and other types without a numpy counterpart
        return np.dtype(("V", tensor.dtype.itemsize))
