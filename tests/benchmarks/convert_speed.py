"""Seconds that a conversion takes, as a process, against a plain copy of the same bytes.

    python -m tests.benchmarks.convert_speed --preset large --stored float16 --dtype bfloat16

writes a random checkpoint of the real names and shapes to a temporary directory, then converts and
copies it in turn: `python -m convert.from_torch` against `cp` of its weights and a sync of the
copy. Both start with the source in memory, the destination just removed and nothing left to write.
All conversions must list the same parameters.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_WEIGHTS = "model.safetensors"


def main() -> None:
    """Generate a checkpoint, convert and copy it in turn, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="large", choices=("base", "large", "large-4k"))
    parser.add_argument("--stored", default="float16", help="dtype in the file")
    parser.add_argument("--dtype", default="bfloat16", help="dtype to write")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--source", type=Path, help="measure this checkpoint instead")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = options.source or _generate(Path(folder), options.preset, options.stored)
        converting, copying = measure(source, Path(folder), options.dtype, options.rounds)
    ratios = [a / b for a, b in zip(converting, copying, strict=True)]
    print(f"convert {_figures(converting)} s, copy {_figures(copying)} s")
    print(
        f"ratio of medians {statistics.median(converting) / statistics.median(copying):.2f}, "
        f"by round {_figures(ratios)}"
    )


def measure(source: Path, folder: Path, dtype: str, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each conversion of `source` and of each copy of its weights, to `folder`."""
    converted, copied = folder / "converted", folder / "copied"
    converting = [sys.executable, "-m", "convert.from_torch", str(source), str(converted)]
    converting += ["--dtype", dtype, "--quiet"]
    copying = 'cp "$0" "$1" && sync "$1"'
    found, seconds = set(), ([], [])
    for _ in range(rounds):
        _prepare(source, converted)
        seconds[0].append(_timed(converting))
        parameters = json.loads((converted / "manifest.json").read_text())["parameters"]
        found.add(json.dumps(parameters))
        _prepare(source, copied)
        seconds[1].append(_timed(["sh", "-c", copying, str(source / _WEIGHTS), str(copied)]))
    if len(found) != 1:
        raise RuntimeError(f"{rounds} conversions of {source} gave {len(found)} sets of parameters")
    return seconds


def _generate(folder: Path, preset: str, stored: str) -> Path:
    from tests.checkpoint.generated import write_checkpoint

    source = folder / "source"
    source.mkdir()
    write_checkpoint(source, preset=preset, stored=stored)
    # Every published checkpoint has one.
    (source / "generation_config.json").write_text('{"num_beams": 3}')
    return source


def _prepare(source: Path, destination: Path) -> None:
    if destination.is_dir():
        shutil.rmtree(destination)
    destination.unlink(missing_ok=True)
    with (source / _WEIGHTS).open("rb", buffering=0) as file:
        buffer = bytearray(1 << 20)
        while file.readinto(buffer):
            pass
    os.sync()


def _timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - start


def _figures(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
