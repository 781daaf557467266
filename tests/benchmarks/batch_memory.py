"""Memory along a run over many inputs: it should stay where it is after the first of them.

    python -m tests.benchmarks.batch_memory --inputs 100000

The tiny model, pictures of 16 x 12 pixels and answers of four tokens: what an input leaves behind
shows, and not what it costs. Resident memory of the process and its workers, in MB.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from florence_jax.batch.blocks import RunOptions
from florence_jax.batch.run import run_blocks
from florence_jax.batch.sources.open import open_source
from tests.batch.fakes import write_pictures
from tests.batch.storm_run import tiny_job

_PICTURES = 500
_BLOCK = 64


def measure(inputs: int, *, workers: int = 1, samples: int = 50) -> list[tuple[int, float]]:
    """(inputs done, MB of this process and its workers) along a run."""
    sampled: list[tuple[int, float]] = []
    done = 0

    def sample(items, rows, pool) -> None:
        nonlocal done
        done += len(rows)
        if done * samples // inputs > len(sampled):
            parts = ["self", *map(str, pool.process_ids())]
            sampled.append((done, sum(map(_resident, parts))))

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_pictures(root / "pictures", _PICTURES, (16, 12), broken=range(0, _PICTURES, 50))
        order = random.Random(0)
        with (root / "rows.jsonl").open("w") as rows:
            for _ in range(inputs):
                name = f"pictures/{order.randrange(_PICTURES):03}.png"
                rows.write(json.dumps({"image": name, "task": "<OCR>"}) + "\n")
        run_blocks(
            open_source([root / "rows.jsonl"]),
            tiny_job(),
            root / "out",
            RunOptions(block_size=_BLOCK, workers=workers),
            after_block=sample,
        )
    return sampled


def growth(samples: list[tuple[int, float]]) -> float:
    """MB that the last fifth has more than the second, medians each: the first warms up."""
    fifth = len(samples) // 5
    second, last = (
        sorted(size for _, size in part)[fifth // 2]
        for part in (samples[fifth : 2 * fifth], samples[-fifth:])
    )
    return last - second


def _resident(process: str) -> float:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:  # a worker that has just ended
        return 0.0
    line = next((line for line in status.splitlines() if line.startswith("VmRSS")), "VmRSS: 0 kB")
    return int(line.split()[1]) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    samples = measure(options.inputs, workers=options.workers)
    for done, size in samples[:: max(1, len(samples) // 10)]:
        print(f"{done:>9} inputs {size:8.1f} MB")
    print(
        f"{options.inputs} inputs in {time.monotonic() - began:.0f} s; the last fifth of the run "
        f"holds {growth(samples):+.1f} MB beside the second"
    )


if __name__ == "__main__":
    main()
