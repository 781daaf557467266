"""`python -m train.plan`: compile a program for machines that are not at hand, and report its
needs.
"""

import argparse
import functools
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

from florence_jax.config import PRESETS
from florence_jax.runtime.directory_lock import directory_lock
from florence_jax.runtime.program import run_program
from florence_jax.runtime.program_parser import ProgramParser
from florence_jax.sharding.mesh import AXES
from florence_jax.training.data.storage import is_url
from florence_jax.training.settings import Remat
from train.plan.chips import CHIPS
from train.plan.compiled import Compiled
from train.plan.report import report
from train.plan.request import PlanRequest
from train.plan.sweep import Records, candidates, sweep, table
from train.plan.worker import compile_request

_DESCRIPTION = """\
Compile the training step, or with --generate the generation loop, for a TPU slice or for GPUs that
are not there, and say whether it fits, what fills the memory, what the devices send each other, and
how fast it can be at best. Nothing runs: a CPU and the compiler are enough. For TPUs
`pip install libtpu`, for NVIDIA GPUs `pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt`
(of jax's version). A compilation takes minutes and some GB of this machine's memory; each is a
process of its own.
"""
_EPILOG = f"""
topologies: [SLICES*]CHIP:SHAPE, the shape in chips. v5e and v6e are flat (v5e:16x16), v4, v5p and
tpu7x have three axes (v5p:4x4x4), GPUs are counted (h100:16, in hosts of 8). A tpu7x chip is two
devices. Chips: {", ".join(CHIPS)}; --chips prints their figures.

mesh: its axes ({", ".join(AXES)}) multiply to the devices; -1 is the rest, dcn_data are
slices. Rules: dp, fsdp, tp, fsdp_tp or a .toml file, as for florence-jax train. Flags of
florence-jax train, such as --lora.rank, change the recipe of --config.

how to read it: "at best" is what no run beats: all FLOPs at the peak, the compiled program's memory
traffic and collectives at the published bandwidths, the slowest deciding. Real steps take longer.
Memory is the compiler's own account. GPU compilers never refuse a program, so there the peak is
compared with the memory; leave them a tenth for the runtime.

Exit status: 0 something fits, 1 nothing does, 2 wrong arguments, 3 no compiler.

examples:
  python -m train.plan --model large --topology v5e:16x16 --mesh data=16,fsdp=16 \\
      --global-batch 2048 --image-size 768 --target-length 1024
  python -m train.plan --topology v5p:4x4x4 --config train/recipes/lora.py --lora.rank 32
  python -m train.plan --topology h100:16 --mesh data=2,fsdp=8 --global-batch 256
  python -m train.plan --topology 2*v5e:16x16 --mesh dcn_data=2,fsdp=256 --rules fsdp
  python -m train.plan --topology v5e:4x4 --mesh data=16 --rules dp --generate --num-beams 3
  python -m train.plan --topology v5e:4x4 v6e:4x4 --sweep --batches 64 128 256 --output plans/
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_program(
        "error",
        functools.partial(_run, arguments),
        interrupted="interrupted; what was compiled is in --output",
    )


def _run(arguments: list[str] | None) -> int:
    options, settings = _parser().parse_known_args(arguments)
    if options.chips:
        print(_chip_table())
        return 0
    requests = _requests(options, settings)
    if not options.output:
        return _plan(requests, None)
    options.output.mkdir(parents=True, exist_ok=True)
    with directory_lock(options.output):
        return _plan(requests, Records(options.output))


def _plan(requests: list[PlanRequest], records: Records | None) -> int:
    found: list[tuple[PlanRequest, Compiled]] = []
    for number, (request, compiled) in enumerate(sweep(requests, _compile(len(requests), records))):
        found.append((request, compiled))
        if len(requests) == 1:
            print(report(request, compiled))
        elif records is not None and number + 1 < len(requests):
            records.write_tables(found)
    if len(requests) > 1:
        print(table(found))
    if records is not None:
        records.write_tables(found)
        print(f"written to {records.directory}/: {', '.join(records.names)}", file=sys.stderr)
    outcomes = {compiled.outcome for _, compiled in found}
    return 0 if "fits" in outcomes else 3 if outcomes == {"no compiler"} else 1


def _compile(count: int, records: Records | None) -> Callable[[PlanRequest], Compiled]:
    """Answer a request, from the records if they have it."""
    started = 0

    def compiled(request: PlanRequest) -> Compiled:
        nonlocal started
        started += 1
        name = f"[{started}/{count}] " if count > 1 else ""
        known = records.find(request) if records is not None else None
        if known is not None:
            return known
        answer = compile_request(request, Progress(f"{name}{request.short()}"))
        if records is not None and answer.outcome != "no compiler":
            records.add(request, answer)
        return answer

    return compiled


class Progress:
    """Report the progress of a compilation: in place on a terminal, every half minute in a log."""

    def __init__(self, name: str):
        self.name = name
        self.said = time.monotonic()

    def __call__(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{self.name}: {text}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self.said >= 30:
            print(f"{self.name}: {text}", file=sys.stderr, flush=True)
            self.said = time.monotonic()


def _requests(options: argparse.Namespace, settings: Sequence[str]) -> list[PlanRequest]:
    given = {field.name: getattr(options, field.name, None) for field in fields(PlanRequest)}
    given |= {
        "topology": options.topology[0],
        "program": "generate" if options.generate else "train",
        "settings": tuple(settings),
    }
    base = PlanRequest(**given)
    machines = [replace(base, topology=name) for name in options.topology]
    if not options.sweep:
        return machines
    return [
        one
        for machine in machines
        for one in candidates(
            machine, meshes=options.meshes, batches=options.batches, remats=options.remats
        )
    ]


def _directory(text: str) -> Path:
    if is_url(text):
        raise argparse.ArgumentTypeError(f"{text} is a URL; plans are written to a directory here")
    return Path(text)


def _parser() -> argparse.ArgumentParser:
    parser = ProgramParser(
        prog="python -m train.plan",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    default = PlanRequest()

    def add(name: str, meaning: str, **options: object) -> None:
        value = getattr(default, name.strip("-").replace("-", "_"))
        text = f"{meaning} (default: {value})" if value != "" else meaning
        if isinstance(value, int | float):
            options["type"] = type(value)
        parser.add_argument(name, default=value, help=text, **options)

    add("--model", "sizes", choices=tuple(PRESETS))
    parser.add_argument(
        "--topology", nargs="+", default=[default.topology], help="machines (default: v5e:4x4)"
    )
    add("--mesh", "how the devices divide the work")
    add("--rules", "how the parameters are divided")
    add("--global-batch", "rows of one update, or images of one call of the loop")
    add("--accumulation", "micro-batches of one update")
    add("--image-size", "pixels, square")
    add("--prompt-length", "tokens of the prompt")
    add("--target-length", "tokens of the answer; with --generate, new tokens at most")
    add("--dtype", "of activations", choices=("float32", "bfloat16", "float16"))
    add(
        "--remat",
        "what the backward pass computes again, model.remat (default: the recipe's, or none)",
        choices=get_args(Remat),
    )
    add("--config", "a recipe to take the optimizer and everything else from")
    parser.add_argument(
        "--generate", action="store_true", help="the generation loop, not the training step"
    )
    add("--num-beams", "beams of the generation loop")
    add(
        "--effort",
        "how hard the TPU compiler tries to make the program fast, -1 to 1; 0 is what a run has, "
        "takes six times as long and may need a little less memory",
    )
    parser.add_argument(
        "--sweep", action="store_true", help="try meshes, batches and remat policies, and rank them"
    )
    parser.add_argument("--meshes", nargs="+", help="of the sweep (default: some that fit)")
    parser.add_argument("--batches", nargs="+", type=int, help="of the sweep, global")
    parser.add_argument("--remats", nargs="+", choices=get_args(Remat), help="of the sweep")
    parser.add_argument(
        "--output",
        type=_directory,
        metavar="DIR",
        help="write plans.jsonl, plans.csv and plans.png; what is in DIR already is not compiled "
        "again",
    )
    parser.add_argument("--chips", action="store_true", help="print the chips' figures and stop")
    return parser


def _chip_table() -> str:
    rows = [
        f"{'chip':<8}{'bf16 TFLOP/s':>14}{'memory GiB':>12}{'GB/s':>8}{'links GB/s':>12}"
        f"{'network GB/s':>14}"
    ]
    for chip in CHIPS.values():
        rows.append(
            f"{chip.name:<8}{chip.flops / 1e12:>14,.0f}{chip.memory / 2**30:>12,.1f}"
            f"{chip.memory_bandwidth / 1e9:>8,.0f}{chip.link_bandwidth / 1e9:>12,.0f}"
            f"{chip.network_bandwidth / 1e9:>14,.3g}"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    # Ending in the ordinary way ends the compiling process too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
