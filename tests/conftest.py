"""Settings of every test: float32 at the highest matmul precision, compiled cheaply and once.

Compilation is most of what the tests cost. XLA:CPU compiles at its lowest optimization level, but
for modules marked `optimized`, and all processes of a run share one compilation cache. Files that
take long come first.
"""

import gc
import os
import shutil
import tempfile
from pathlib import Path

import hypothesis
import jax
import pytest
from jax._src import compiler

# Tests leave nothing in the user's cache.
os.environ.setdefault("FLORENCE_JAX_COMPILATION_CACHE", "off")
# PyTorch is imported later. On tiny models its threads spend their time waiting for each other: a
# forward pass in float64 takes 0.8 s instead of 0.01 s where two processes share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
jax.config.update("jax_default_matmul_precision", "highest")
# No test fails because a machine is slow.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

_CACHE = "JAX_COMPILATION_CACHE_DIR"
_MIN_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
_LOWEST_LEVEL = "JAX_DISABLE_MOST_OPTIMIZATIONS"
# MLIR's, half of what compilation costs; from jax 0.11 on they cannot be switched off.
_EMITTERS = "xla_cpu_use_fusion_emitters" if jax.__version_info__ < (0, 11) else None
# The longest first, so that `--dist loadfile` ends with short ones; the others in any order.
_LONGEST = (
    "training/test_loop.py",
    "test_packaging.py",
    "benchmarks/rivals/test_bench.py",
    "training/test_learning.py",
    "training/images/test_segment.py",
    "training/test_step.py",
    "training/cached_features/test_cached_features.py",
    "test_style.py",
    "export/test_export.py",
    "backbone/test_backbone.py",
    "test_docs.py",
    "conversion/test_to_torch.py",
    "sharding/test_processes.py",
    "benchmarks/test_accelerator.py",
    "model/test_parity_tiny.py",
    "inference/test_constraints.py",
    "convert/test_verify_faults.py",
    "train/shapes/test_pretrain_vision.py",
    "inference/test_pipeline.py",
    "classification/test_shipped_tower.py",
    "ops/test_decode_kernels.py",
    "demo/test_bundled_model.py",
    "ops/test_davit_kernels.py",
    "inference/test_multi_device.py",
    "generation/test_loops.py",
    "ops/test_window_attention_pallas.py",
    "training/images/test_classify.py",
    "sharding/test_equality.py",
    "generation/test_florence_parity.py",
    "model/test_florence2.py",
    "generation/test_original_tokens.py",
    "checkpoint/test_save.py",
    "runtime/test_atomic_dir.py",
    "inference/test_task_options.py",
    "inference/test_warmup.py",
    "sharding/test_budgets.py",
)
_MAPPINGS = Path("/proc/self/maps")
_made_here: list[str] = []
_compile_options = compiler.get_compile_options


def _without_emitters(*arguments, backend, env_options_overrides=None, **options):
    overrides = dict(env_options_overrides or {})
    if backend.platform == "cpu":
        overrides[_EMITTERS] = False
    return _compile_options(*arguments, backend=backend, env_options_overrides=overrides, **options)


def pytest_configure(config):
    # xdist would start with the files of most tests.
    config.option.loadscopereorder = False
    # The first process makes the cache; xdist's workers and the tests' programs inherit its name.
    if _CACHE not in os.environ:
        _made_here.append(tempfile.mkdtemp(prefix="florence-jax-tests-"))
        os.environ[_CACHE] = _made_here[0]
        os.environ[_MIN_SECONDS] = "0.1"
        jax.config.update(_CACHE.lower(), _made_here[0])
        jax.config.update(_MIN_SECONDS.lower(), 0.1)


def pytest_unconfigure(config):
    for directory in _made_here:
        shutil.rmtree(directory, ignore_errors=True)


def pytest_collection_modifyitems(items):
    rank = {f"tests/{name}": place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: rank.get(item.nodeid.split("::")[0], len(rank)))


def pytest_collection_finish(session):
    # What is imported by now stays: half a million objects that no later collection need look at.
    gc.collect()
    gc.freeze()
    # Tracing makes objects by the million and few cycles: a tenth of its time went to looking.
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(autouse=True, scope="module")
def _compilation(request):
    """Compiles as cheaply as XLA:CPU can, in a quarter of the time; tiny models run no slower.

    The comparisons of whole models with PyTorch and with the original, and those of bits that users
    rely on, are made of what users run: their modules are marked `optimized`.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("optimized") is None:
            jax.devices()  # This process has read XLA_FLAGS; those below are for its children.
            patch.setenv(_LOWEST_LEVEL, "1")
            if _EMITTERS is not None:
                flags = f"{os.environ.get('XLA_FLAGS', '')} --{_EMITTERS}=false"
                patch.setenv("XLA_FLAGS", flags)
                patch.setattr(compiler, "get_compile_options", _without_emitters)
            jax.config.update(_LOWEST_LEVEL.lower(), True)
        yield
    jax.config.update(_LOWEST_LEVEL.lower(), False)
    jax.clear_caches()
    # Each program that is left in cycles holds memory mappings, of which Linux allows a process
    # 65,530: a whole run would end in a segmentation fault inside XLA.
    if _MAPPINGS.exists() and _MAPPINGS.read_bytes().count(b"\n") > 15_000:
        gc.collect()


@pytest.fixture(scope="session")
def compiled_on_disk():
    """The directory of the compilation cache that this process and its children use."""
    return Path(os.environ[_CACHE])
