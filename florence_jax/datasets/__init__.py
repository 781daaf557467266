"""Readers of users' data sets, for training and evaluation; no jax."""
