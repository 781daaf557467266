"""Signals, files, locks and error messages that every program shares; no jax."""
