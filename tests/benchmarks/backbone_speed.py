"""Time a DaViT of ours beside timm's, eager and under torch.compile.

    python -m tests.benchmarks.backbone_speed                          # tiny at 224, base_fl at 768
    python -m tests.benchmarks.backbone_speed --model davit_small --image-size 224 --batch 4

The same weights, images, dtype, threads and malloc settings, a process for each, one working while
the others are stopped, in turns whose order is reversed every round; results are compared before
anything is timed. Needs `pip install --no-deps timm==1.0.31`.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import florence_jax as fj
from tests.benchmarks.rivals import machine
from tests.benchmarks.rivals.engines.backbones import CALL
from tests.benchmarks.rivals.engines.engine import OURS, EngineInfo
from tests.benchmarks.rivals.processes import Worker, WorkerError, environment
from tests.benchmarks.rivals.results import CaseResult, Row
from tests.benchmarks.rivals.rounds import check, time_in_turns
from tests.benchmarks.rivals.settings import Settings
from tests.benchmarks.rivals.table import format_table

_ROOM = "tests.benchmarks.rivals.engines.backbones"
ENGINES = {
    OURS: EngineInfo(label="florence-jax", factory=f"{_ROOM}:OurBackbone", compiles=True),
    "timm": EngineInfo(
        label="timm, eager", factory=f"{_ROOM}:timm_eager", packages=("torch", "timm")
    ),
    "timm-compile": EngineInfo(
        label="timm, torch.compile",
        factory=f"{_ROOM}:timm_compiled",
        packages=("torch", "timm"),
        compiles=True,
    ),
}
_DEFAULTS = (("davit_tiny", 224), ("davit_base_fl", 768))


def measure(name: str, image_size: int, options: argparse.Namespace) -> Iterator[CaseResult]:
    """A table for each batch size, of random weights of a preset."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        backbone, params = fj.load_backbone(name, pretrained=False, seed=options.seed)
        fj.save_backbone(Path(folder) / "weights", backbone.config, params)
        del params
        settings = Settings(
            weights=str(Path(folder) / "weights"),
            platform="cpu",
            dtype="float32",
            threads=options.threads,
            image_size=image_size,
            new_tokens=0,
            seed=options.seed,
            cache=folder,
        )
        variables = environment(settings, options.malloc)
        workers: dict[str, Worker] = {}
        notes: dict[str, str] = {}
        for engine in options.engines:
            info = ENGINES[engine]
            missing = info.missing()
            if missing:
                notes[engine] = f"not installed: {', '.join(missing)}"
                continue
            try:
                workers[engine] = stack.enter_context(Worker(info, settings, variables))
            except WorkerError as error:
                notes[engine] = f"failed: {error}"
        for batch in options.batch:
            yield _case(name, batch, settings, workers, dict(notes), options)


def _case(
    name: str,
    batch: int,
    settings: Settings,
    workers: dict[str, Worker],
    notes: dict[str, str],
    options: argparse.Namespace,
) -> CaseResult:
    def progress(engine: str, call: str) -> None:
        print(f"\r{engine:<14}{call:<10}", end="", file=sys.stderr, flush=True)

    problems = check(workers, CALL, batch, settings.dtype, {}, progress)
    notes |= {engine: problem for engine, problem in problems.items() if problem}
    sound = {engine: worker for engine, worker in workers.items() if engine not in notes}
    samples, failures = time_in_turns(sound, [CALL], batch, options.rounds, progress)
    notes |= failures
    rows = {engine: Row(label=ENGINES[engine].label, note=note) for engine, note in notes.items()}
    for engine, found in samples.items():
        if engine not in notes:
            rows[engine] = Row.of(ENGINES[engine].label, found[CALL])
    side = settings.image_size
    context = {
        "model": name,
        "batch": batch,
        "image_size": side,
        "dtype": settings.dtype,
        "threads": settings.threads,
        "malloc": options.malloc,
        "machine": machine.describe(),
    }
    print("\r" + " " * 30 + "\r", end="", file=sys.stderr)
    title = f"{batch} x {side} x {side} pixels, {settings.dtype}, malloc {options.malloc}"
    return CaseResult(case=name, title=title, context=context, rows=rows, images=batch)


def main() -> int:
    """Measure and print; the exit status is 1 if an engine failed or differs from ours."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a preset (default: davit_tiny and davit_base_fl)")
    parser.add_argument("--image-size", type=int, help="with --model: side in pixels")
    parser.add_argument("--engines", nargs="+", choices=tuple(ENGINES), default=tuple(ENGINES))
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=5, help="timed calls (default: 5)")
    parser.add_argument("--threads", type=int, default=machine.available_threads())
    parser.add_argument("--malloc", choices=("tuned", "default"), default="tuned")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append a JSON line per table")
    options = parser.parse_args()
    if (options.model is None) != (options.image_size is None):
        parser.error("--model and --image-size belong together: give both or none")
    cases = _DEFAULTS if options.model is None else ((options.model, options.image_size),)
    print(", ".join(f"{name} {value}" for name, value in machine.describe().items()))
    failed = False
    for name, image_size in cases:
        for result in measure(name, image_size, options):
            print(f"\n{format_table(result)}", flush=True)
            failed |= any(row.note is not None for row in result.rows.values())
            if options.json is not None:
                with options.json.open("a", encoding="utf-8") as file:
                    print(json.dumps(result.to_json()), file=file)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
