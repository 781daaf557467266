"""LoRA adapters in PEFT's format: read, write, merge into a base model, or apply beside it."""

from florence_jax.adapters.adapter import Adapter, LowRank
from florence_jax.adapters.merge import Merged, merge
from florence_jax.adapters.model_directory import resolve_model
from florence_jax.adapters.peft import read_adapter, write_adapter

__all__ = [
    "Adapter",
    "LowRank",
    "Merged",
    "merge",
    "read_adapter",
    "resolve_model",
    "write_adapter",
]
