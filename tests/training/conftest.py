"""Runs share what they compile: the gradient of even the smallest model takes XLA 20 seconds."""

import os
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(autouse=True, scope="module")
def _compiled_quickly(request):
    # What XLA:CPU's LLVM does at its lowest level takes a third of the time, and the tiny models
    # of these tests run no slower. The comparison with PyTorch is made of what users run.
    if request.module.__name__.endswith("test_gradient_parity"):
        yield
        return
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name.upper(), "1")  # the processes that tests start
        jax.config.update(name, True)
        yield
    jax.config.update(name, before)


@pytest.fixture(scope="session")
def compiled_on_disk(tmp_path_factory):
    """The directory of a compilation cache that this process and its children use."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        yield Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
        return
    directory = tmp_path_factory.mktemp("compiled")
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (str(directory), 0.5), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield directory
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
