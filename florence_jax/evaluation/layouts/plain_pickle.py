"""Pickles that hold data and nothing else."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from florence_jax.evaluation.layouts.files import LayoutError


class _Plain(pickle.Unpickler):
    """Numbers, texts, lists, tuples, dicts and sets: what a pickle builds without naming a class.

    A pickle runs code by naming something to call. Nothing is found here, whatever its name.
    """

    def find_class(self, module: str, name: str) -> Any:
        raise LayoutError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise LayoutError(f"it refers to something outside of it, {pid!r}")


def read_plain_pickle(path: Path) -> Any:
    """The content of a pickle, written by Python 2 or 3, that holds built-in containers alone.

    Raises:
        LayoutError: it names anything that could be called, or is damaged. Nothing of it has run.
    """
    try:
        with path.open("rb") as file:
            # Python 2's texts are bytes, which latin-1 always reads.
            return _Plain(file, encoding="latin-1").load()
    except LayoutError as error:
        raise LayoutError(
            f"{path} is not plain data: {error}. Nothing of it was run; download it anew from its "
            "authors, and do not open it with pickle.load"
        ) from None
    except Exception as error:
        # A damaged pickle raises nearly anything.
        raise LayoutError(
            f"{path} is damaged ({type(error).__name__}: {error}): download it again"
        ) from None
