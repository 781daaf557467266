"""Programs of this package in processes of their own, with as many CPU devices as they need."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def environment(devices=8, **more):
    flags = os.environ.get("XLA_FLAGS", "")
    flags += f" --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", **more}


def run_lines(module, *arguments, cache=None, devices=8):
    """The JSON lines that `python -m tests.sharding.<module>` prints."""
    more = {}
    if cache is not None:
        more = {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        }
    done = subprocess.run(
        [sys.executable, "-m", f"tests.sharding.{module}", *arguments],
        cwd=ROOT,
        env=environment(devices, **more),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
