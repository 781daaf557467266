"""Compile in a separate process, so that a crash of the compiler ends that process alone."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from train.plan.compiled import Compiled, Traffic, read_out_of_memory
from train.plan.request import PlanRequest
from train.plan.topology import (
    CompilerMissing,
    compiler_release,
    environment,
    missing_compiler,
)

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "train.plan.worker")


def compile_request(request: PlanRequest, progress: Callable[[str], None]) -> Compiled:
    """Compile a request in a process that this function starts and watches.

    Args:
        progress: called with a line of text every few seconds.
    """
    missing = missing_compiler(request.machine)
    if missing:
        return Compiled(outcome="no compiler", message=missing)
    with tempfile.TemporaryDirectory(prefix="florence-plan-") as directory:
        answer, log = Path(directory, "answer.json"), Path(directory, "log.txt")
        with log.open("wb") as written:
            process = subprocess.Popen(
                [*COMMAND, str(answer)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=written,
                cwd=ROOT,
                env={**os.environ, **environment(request.machine)},
            )
        assert process.stdin is not None
        try:
            # It may have ended already: then its status says why.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(request.to_tree()).encode())
                process.stdin.close()
            started = time.monotonic()
            while True:
                try:
                    process.wait(5)
                    break
                except subprocess.TimeoutExpired:
                    progress(f"{_stage(answer)}, {time.monotonic() - started:.0f} s")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if answer.exists():
            return Compiled.from_tree(json.loads(answer.read_text()))
        return Compiled(outcome="failed", message=_how_it_ended(process.returncode, log))


def _stage(answer: Path) -> str:
    return "compiling" if answer.with_suffix(".lowered").exists() else "tracing"


def _how_it_ended(status: int, log: Path) -> str:
    if status == -signal.SIGKILL:
        return "the compiler was killed, most likely because this machine ran out of memory"
    how = signal.Signals(-status).name if status < 0 else f"status {status}"
    tail = log.read_text(errors="replace").strip().splitlines()[-12:]
    return "\n".join([f"the compiler's process ended with {how}", *tail])


def compile_here(request: PlanRequest, lowered_marker: Path | None = None) -> Compiled:
    """Compile a request in this process, whose environment must be `environment(...)`."""
    from train.plan import schedule
    from train.plan.attribution import attribute
    from train.plan.collectives import collectives
    from train.plan.hlo import parse_hlo
    from train.plan.program import lower

    started = time.perf_counter()
    try:
        program = lower(request)
    except CompilerMissing as error:
        return Compiled(outcome="no compiler", message=str(error))
    lowering = time.perf_counter() - started
    if lowered_marker is not None:
        lowered_marker.touch()
    chip = request.machine.chip
    known = {
        "limit": chip.of_device(chip.memory),
        "parameters": program.parameters,
        "optimizer": program.optimizer,
        "frozen": program.frozen,
        "inputs": program.inputs,
        "flops": program.flops,
        "paper_flops": program.paper_flops,
        "lowering_seconds": lowering,
        "notes": program.notes,
        "compiler": compiler_release(request.machine),
    }
    started = time.perf_counter()
    try:
        options = {"exec_time_optimization_effort": request.effort}
        compiled = program.lowered.compile(options if chip.platform == "tpu" else None)
    except Exception as error:
        seconds = time.perf_counter() - started
        lack = read_out_of_memory(str(error))
        known["compiling_seconds"] = seconds
        if lack is None:
            return Compiled(outcome="failed", message=str(error)[:4000], **known)
        known |= {"peak": lack.needed, "limit": lack.available or known["limit"]}
        return Compiled(outcome="too large", message=str(lack), **known)
    known["compiling_seconds"] = time.perf_counter() - started
    module = parse_hlo(compiled.as_text())
    memory = compiled.memory_analysis()
    peak = memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes
    held = sum(int(known[name]) for name in ("parameters", "optimizer", "frozen", "inputs"))
    activations = min(schedule.peak(module).forward, max(peak - held, 0))
    loops = [loop.name for loop in schedule.endless(module)]
    turns = dict(zip(loops, program.turns, strict=True)) if len(loops) == len(program.turns) else {}
    found: dict[str, Traffic] = {}
    near = request.machine.near_devices
    for one in collectives(module):
        total = found.get(one.kind, Traffic())
        times = turns.get(one.loops[0], 1) if one.trips is None else one.trips
        sent = times * one.sent_bytes
        found[one.kind] = Traffic(
            count=total.count + times,
            bytes=total.bytes + times * one.bytes,
            sent_bytes=total.sent_bytes + sent,
            far_bytes=total.far_bytes + (sent if one.crosses(near) else 0.0),
            unbounded=total.unbounded + (times if one.trips is None else 0),
        )
    # XLA's GPU compiler never refuses a program for its size.
    return Compiled(
        outcome="fits" if peak <= known["limit"] else "too large",
        peak=peak,
        activations=activations,
        temporaries=max(peak - held - activations, 0),
        traffic=schedule.traffic(module, turns),
        sources=attribute(module, turns),
        collectives=found,
        **known,
    )


if __name__ == "__main__":
    path = Path(sys.argv[1])
    tree = PlanRequest.from_tree(json.loads(sys.stdin.read()))
    try:
        result = compile_here(tree, path.with_suffix(".lowered"))
    except ValueError as error:
        result = Compiled(outcome="failed", message=str(error))
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(result.to_tree()))
    aside.rename(path)
