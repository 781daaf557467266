"""Checkpoints: published PyTorch weights and this library's own format, in and out.

One two-way table of names (`keymap`) serves every direction.
"""

from florence_jax.checkpoint.export import torch_tensors
from florence_jax.checkpoint.hub import resolve
from florence_jax.checkpoint.load import Checkpoint, load_checkpoint
from florence_jax.checkpoint.manifest import Manifest
from florence_jax.checkpoint.origin import Origin
from florence_jax.checkpoint.plan import Plan, plan_checkpoint
from florence_jax.checkpoint.problems import CheckpointError
from florence_jax.checkpoint.report import Report
from florence_jax.checkpoint.repository import RepositoryConfig, read_config
from florence_jax.checkpoint.save import save_checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Manifest",
    "Origin",
    "Plan",
    "Report",
    "RepositoryConfig",
    "load_checkpoint",
    "plan_checkpoint",
    "read_config",
    "resolve",
    "save_checkpoint",
    "torch_tensors",
]
