"""Write safetensors files with the umask's permissions and the system's own errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file


def save_tensors(
    tensors: Mapping[str, np.ndarray], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file of contiguous arrays.

    Raises:
        OSError: the disk is full, or the system refuses for another reason.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, metadata=dict(metadata or {}))
        # The library makes a file that only its owner may read.
        path.chmod(mode)
    except SafetensorError as error:
        # The library wraps the system's error into its own and keeps the number in the text.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), str(error), str(path)) from error
