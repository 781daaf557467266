"""Checkpoints: published PyTorch weights in, under one two-way table of names."""

from florence_jax.checkpoint.export import torch_tensors
from florence_jax.checkpoint.hub import resolve
from florence_jax.checkpoint.load import Checkpoint, load_checkpoint
from florence_jax.checkpoint.plan import Plan, plan_checkpoint
from florence_jax.checkpoint.problems import CheckpointError
from florence_jax.checkpoint.report import Report
from florence_jax.checkpoint.repository import RepositoryConfig, read_config

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Plan",
    "Report",
    "RepositoryConfig",
    "load_checkpoint",
    "plan_checkpoint",
    "read_config",
    "resolve",
    "torch_tensors",
]
