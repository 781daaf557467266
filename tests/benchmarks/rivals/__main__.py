"""`python -m tests.benchmarks.rivals`: the options, and the output while it runs."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from florence_jax.runtime.program import run_program
from tests.benchmarks.rivals.cases import CASE_NAMES, CASES
from tests.benchmarks.rivals.engines.engine import ENGINES
from tests.benchmarks.rivals.machine import available_threads, describe
from tests.benchmarks.rivals.run import Bench
from tests.benchmarks.rivals.settings import START_TOKENS, Settings
from tests.benchmarks.rivals.table import format_table

_DESCRIPTION = """\
Measure this library beside transformers (eager attention, SDPA, torch.compile), ONNX Runtime and
CTranslate2 on this machine: the same weights, inputs, dtype, threads and malloc settings, a process
for each, one working while the others are stopped, in turns whose order is reversed every round.
Results are compared before anything is timed. The rivals need: pip install -e ".[bench]"
"""
_EPILOG = """\
columns: median, fastest and slowest wall time; CPU, the process's own processor time; others, the
share of the machine that other processes took meanwhile; roofline, the least time that the matmul
and memory speeds measured in this run allow, as a share of the median; / ours, the median in units
of ours.

examples:
  python -m tests.benchmarks.rivals --json bench.jsonl
  python -m tests.benchmarks.rivals --quick
  python -m tests.benchmarks.rivals --model large --dtype bfloat16 --device cuda --batch 1 32
  python -m tests.benchmarks.rivals --cases beam step --batch 4 --engines jax torch-sdpa
"""
_QUICK_CASES = ("vision", "encoder", "beam", "step")
_QUICK_ROUNDS, _QUICK_TOKENS = 2, 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; the exit status is 1 if an engine failed or differs from ours, 2 for an error."""
    return run_program("tests.benchmarks.rivals", lambda: run(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.rivals",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        default="base",
        help="base, large or tiny with random weights, a checkpoint directory or a hub id "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=CASE_NAMES,
        default=tuple(CASES),
        help="default: all but start",
    )
    parser.add_argument(
        "--engines", nargs="+", choices=tuple(ENGINES), default=tuple(ENGINES), help="default: all"
    )
    parser.add_argument(
        "--batch", type=_count, nargs="+", default=[1], help="images in a call (default: 1)"
    )
    parser.add_argument("--image-size", type=_count, default=768, help="default: %(default)s")
    parser.add_argument(
        "--new-tokens", type=_count, help="in every answer, exactly (default: 64; quick: 16)"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32",
        help="of weights and activations (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=("cpu", "cuda", "tpu"), help="default: what jax chooses here"
    )
    parser.add_argument("--threads", type=_count, help="default: all processors")
    parser.add_argument("--rounds", type=_count, help="timed calls each, at least 5 (default: 5)")
    parser.add_argument(
        "--malloc",
        choices=("both", "tuned", "default"),
        default="both",
        help="glibc settings that keep large buffers, for all engines; the system's own; or the "
        "first for all and the second for what it matters to (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs")
    parser.add_argument(
        "--quick", action="store_true", help="2 rounds of four cases, 16 tokens: a look, no figures"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one JSON line per case")
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="keeps weights and exported graphs for the next run "
        "(default: ~/.cache/florence-jax/bench)",
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Measure what the options say; 1 where an engine failed or gave other results, else 0."""
    rounds = options.rounds or (_QUICK_ROUNDS if options.quick else 5)
    if rounds < 5 and not options.quick:
        raise ValueError(f"--rounds is {rounds}, expected at least 5 (or --quick for a look)")
    new_tokens = options.new_tokens or (_QUICK_TOKENS if options.quick else 64)
    if new_tokens <= START_TOKENS:
        raise ValueError(f"--new-tokens is {new_tokens}, expected more than {START_TOKENS}")
    threads = options.threads or available_threads()
    if threads > available_threads():
        raise ValueError(f"--threads is {threads}, but this machine has {available_threads()}")
    cases = options.cases
    if options.quick:
        cases = [name for name in cases if name in _QUICK_CASES]
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    bench = Bench(
        model=options.model,
        settings=Settings(
            weights="",
            platform=options.device or _default_device(),  # pyright: ignore[reportArgumentType]
            dtype=options.dtype,
            threads=threads,
            image_size=options.image_size,
            new_tokens=new_tokens,
            seed=options.seed,
            cache="",
        ),
        engines={name: ENGINES[name] for name in options.engines},
        cases=cases,
        batches=options.batch,
        rounds=rounds,
        malloc="tuned" if options.quick and options.malloc == "both" else options.malloc,
        folder=options.cache or Path(cache) / "florence-jax" / "bench",
    )
    print(", ".join(f"{name} {value}" for name, value in describe().items()))
    failed = False
    with tqdm(unit="call", disable=None, leave=False) as bar:

        def progress(engine: str, call: str) -> None:
            bar.set_description(f"{engine}: {call}")
            bar.update()

        output = options.json and options.json.open("a", encoding="utf-8")
        try:
            for result in bench.run(progress):
                failed |= any(_is_failure(row.note) for row in result.rows.values())
                bar.clear()
                context = result.context
                print(
                    f"\n[{context['model']}, {context['device']}, {context['dtype']}, "
                    f"batch {context['batch']}, {context['image_size']} px, "
                    f"{context['threads']} threads, {context['malloc']} malloc]"
                )
                print(format_table(result), flush=True)
                _append(output, result.to_json() | {"quick": options.quick})
        finally:
            if output:
                output.close()
    return 1 if failed else 0


def _append(output: TextIO | None, line: dict[str, Any]) -> None:
    if output is not None:
        print(json.dumps(line), file=output, flush=True)


def _is_failure(note: str | None) -> bool:
    return note is not None and note.startswith(("failed", "MISMATCH", "not compared"))


def _default_device() -> str:
    """Asked in another process: this one must not take an accelerator's memory."""
    code = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    found = done.stdout.strip().splitlines()[-1:] or ["cpu"]
    return {"gpu": "cuda"}.get(found[0], found[0])


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
