"""Pallas, imported when it is first used.

Importing Pallas takes a quarter of a second, and only programs compiled for a TPU need it. Kernel
files import `pl` and `pltpu` from here, so that every process can import their predicates and
references without that cost.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu
else:

    class _LazyModule:
        """A module that is imported when one of its names is first used."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            return getattr(importlib.import_module(self._name), attribute)

    pl = _LazyModule("jax.experimental.pallas")
    pltpu = _LazyModule("jax.experimental.pallas.tpu")

__all__ = ["pl", "pltpu"]
