"""Shared by all tests: parity is a statement about float32 at the highest matmul precision."""

import jax

jax.config.update("jax_default_matmul_precision", "highest")
