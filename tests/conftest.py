"""Shared by all tests: parity is a statement about float32 at the highest matmul precision."""

import gc
import os

import jax
import pytest

# Tests leave nothing in the user's cache; JAX_COMPILATION_CACHE_DIR is honoured.
os.environ.setdefault("FLORENCE_JAX_COMPILATION_CACHE", "off")
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(autouse=True, scope="module")
def _let_go_of_compiled_programs():
    # Each holds memory mappings, of which Linux allows a process 65,530: a whole run would end in
    # a segmentation fault inside XLA.
    yield
    jax.clear_caches()
    gc.collect()
