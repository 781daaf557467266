"""Shared by all tests: parity is a statement about float32 at the highest matmul precision."""

import os

import jax

# Tests leave nothing in the user's cache; JAX_COMPILATION_CACHE_DIR is honoured.
os.environ.setdefault("FLORENCE_JAX_COMPILATION_CACHE", "off")
jax.config.update("jax_default_matmul_precision", "highest")
