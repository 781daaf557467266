"""Checkpoints of a training run: saving, restoring, resuming, and the best one."""
