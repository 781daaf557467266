"""Checkpoints: published PyTorch weights and this library's own format, in and out.

One two-way table of names (`pytorch.key_map`) serves every direction.
"""

from florence_jax.checkpoint.errors import CheckpointError
from florence_jax.checkpoint.hub import resolve
from florence_jax.checkpoint.load import Checkpoint, load_checkpoint, plan_checkpoint, read_params
from florence_jax.checkpoint.native.manifest import Manifest
from florence_jax.checkpoint.native.save import save_checkpoint
from florence_jax.checkpoint.plan import LoadPlan, Report, SourceFormat
from florence_jax.checkpoint.pytorch.save import torch_tensors
from florence_jax.checkpoint.repository import RepositoryConfig, read_config

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "LoadPlan",
    "Manifest",
    "Report",
    "RepositoryConfig",
    "SourceFormat",
    "load_checkpoint",
    "plan_checkpoint",
    "read_config",
    "read_params",
    "resolve",
    "save_checkpoint",
    "torch_tensors",
]
