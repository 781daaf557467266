"""Conversion between PyTorch checkpoints and this library's format, in both directions."""

from florence_jax.conversion.from_torch import Conversion, from_torch
from florence_jax.conversion.to_torch import Export, TiedNames, to_torch

__all__ = ["Conversion", "Export", "TiedNames", "from_torch", "to_torch"]
