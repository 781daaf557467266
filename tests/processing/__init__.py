"""Tests of `florence_jax.processing`."""
