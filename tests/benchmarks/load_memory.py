"""Peak anonymous host memory and time of loading a full-size checkpoint. Linux only.

    python -m tests.benchmarks.load_memory --preset large-4k --stored float32 --dtype bfloat16

writes a random checkpoint of the real names and shapes to a temporary directory, loads it in a
fresh process and prints the peak of RssAnon: the memory that the kernel cannot drop, unlike the
pages of the mapped file.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

_SAMPLE_SECONDS = 0.005


def main() -> None:
    """Generate a checkpoint, load it in a fresh process, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="large-4k", choices=("base", "large", "large-4k"))
    parser.add_argument("--stored", default="float32", help="dtype in the file")
    parser.add_argument("--dtype", default="bfloat16", help="dtype to load")
    parser.add_argument("--naming", default="original", choices=("original", "native"))
    parser.add_argument("--format", default="safetensors", choices=("safetensors", "bin"))
    parser.add_argument("--measure", type=Path, help="load this directory here and now")
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(_load(options.measure, options.dtype)))
        return
    from tests.checkpoint.generated import write_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(
            Path(folder),
            preset=options.preset,
            naming=options.naming,
            stored=options.stored,
            file_format=options.format,
        )
        figures = measure(Path(folder), options.dtype)
    print(f"{options.preset}, {options.stored} {options.format} -> {options.dtype}: {figures}")


def measure(directory: Path, dtype: str) -> dict[str, float]:
    """Load `directory` in a fresh process: its seconds, peak GiB and the parameters' GiB."""
    command = [sys.executable, "-m", "tests.benchmarks.load_memory"]
    command += ["--measure", str(directory), "--dtype", dtype]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(finished.stdout.splitlines()[-1])


def _load(directory: Path, dtype: str) -> dict[str, float]:
    import jax

    from florence_jax.checkpoint import load_checkpoint

    jax.devices()
    before = _anonymous_gib()
    peak = before
    finished = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not finished.wait(_SAMPLE_SECONDS):
            peak = max(peak, _anonymous_gib())

    sampler = threading.Thread(target=sample)
    sampler.start()
    start = time.perf_counter()
    params = load_checkpoint(directory, dtype).params
    seconds = time.perf_counter() - start
    finished.set()
    sampler.join()
    loaded = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 2**30
    return {
        "seconds": round(seconds, 1),
        "peak_gib": round(peak, 3),
        "before_gib": round(before, 3),
        "parameters_gib": round(loaded, 3),
    }


def _anonymous_gib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 2**20
    raise RuntimeError("no RssAnon in /proc/self/status: this measurement needs Linux")


if __name__ == "__main__":
    main()
