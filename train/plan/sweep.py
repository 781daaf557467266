"""Sweep over plans, and rank those that fit by their best speed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import get_args

from florence_jax.training.remat import Remat
from train.plan.bounds import bounds
from train.plan.compiled import Compiled, gib
from train.plan.request import PlanRequest

Answer = tuple[PlanRequest, Compiled]


def candidates(
    request: PlanRequest,
    *,
    meshes: Sequence[str] | None = None,
    batches: Sequence[int] | None = None,
    remats: Sequence[str] | None = None,
) -> list[PlanRequest]:
    """Variants of a request with other meshes, batch sizes and remat policies, smaller batches
    first.

    By default: its own remat policy or else all of them, half, once and twice its batch, and the
    meshes that divide the parameters among all devices, among 16 or 8 of them, and not at all.
    """
    if not remats:
        every = request.program == "train" and not request.remat
        remats = get_args(Remat) if every else (request.remat,)
    chosen = []
    for mesh in meshes or _meshes(request):
        for remat in remats:
            for batch in sorted(batches or _batches(request)):
                chosen.append(replace(request, mesh=mesh, remat=remat, global_batch=batch))
    return chosen


def sweep(
    requests: Iterable[PlanRequest], compiled: Callable[[PlanRequest], Compiled]
) -> Iterator[Answer]:
    """Answer each request; larger batches than one that did not fit are skipped."""
    refused: dict[PlanRequest, Compiled] = {}
    for request in requests:
        without_batch = replace(request, global_batch=request.accumulation)
        smaller = refused.get(without_batch)
        if smaller is not None:
            yield request, replace(smaller, message="a smaller batch did not fit", peak=0.0)
            continue
        answer = compiled(request)
        if answer.outcome == "too large":
            refused[without_batch] = answer
        yield request, answer


def ranked(found: Iterable[Answer]) -> list[Answer]:
    """Sort: those that fit first, the fastest first, then the others."""

    def rank(answer: Answer) -> tuple:
        request, compiled = answer
        if compiled.outcome != "fits":
            return (1, 0.0, compiled.outcome)
        return (0, -bounds(request, compiled).images_per_second, str(compiled.peak))

    return sorted(found, key=rank)


def table(found: Iterable[Answer]) -> str:
    """The ranking as text."""
    lines = [
        f"{'machine':<14}{'mesh':<28}{'rules':<9}{'batch':>7} {'remat':<10}{'peak':>11}"
        f"{'step':>11}{'limit':>9}{'images/s':>10}{'compiled':>10}"
    ]
    for request, compiled in ranked(found):
        line = (
            f"{request.topology:<14}{request.mesh:<28}{request.rules:<9}{request.global_batch:>7} "
            f"{request.remat or '-':<10}"
        )
        peak = gib(compiled.peak) if compiled.peak else "-"
        if compiled.outcome != "fits":
            why = compiled.message.splitlines()[0] if compiled.message else ""
            lines.append(f"{line}{peak:>11}  {compiled.outcome}: {why[:60]}")
            continue
        figures = bounds(request, compiled)
        lines.append(
            f"{line}{peak:>11}{figures.seconds * 1e3:>8,.1f} ms{figures.limit:>9}"
            f"{figures.images_per_second:>10,.0f}{compiled.compiling_seconds:>8,.0f} s"
        )
    return "\n".join(lines)


def _meshes(request: PlanRequest) -> list[str]:
    machine = request.machine
    outer = f"dcn_data={machine.slices}," if machine.slices > 1 else ""
    devices = machine.devices // machine.slices
    parts = dict.fromkeys(n for n in (devices, 16, 8, 1) if n <= devices and devices % n == 0)
    return [f"{outer}data={devices // n},fsdp={n}" for n in parts]


def _batches(request: PlanRequest) -> list[int]:
    batch = request.global_batch
    return [half for half in (batch // 2, batch, batch * 2) if half % request.accumulation == 0]
