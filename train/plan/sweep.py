"""Sweep over plans: rank those that fit by their best speed, and keep the answers on disk."""

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from florence_jax.runtime.atomic_file import atomic_open, named_errors
from florence_jax.runtime.text_file import json_lines
from florence_jax.training.settings import Remat
from train.plan.bounds import bounds
from train.plan.compiled import Answer, Compiled, gib
from train.plan.report import draw
from train.plan.request import PlanRequest
from train.plan.topology import compiler_release


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


class Records:
    """The plans of a directory.

    Attributes:
        directory: where they are.
    """

    names = ("plans.jsonl", "plans.csv", "plans.png")

    def __init__(self, directory: Path):
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._lines = directory / self.names[0]
        self._known: dict[str, Compiled] = {}
        if self._lines.exists():
            for _, tree in json_lines(self._lines):
                self._known[_key(tree)] = Compiled.from_tree(tree["compiled"])

    def find(self, request: PlanRequest) -> Compiled | None:
        """Find the recorded answer to the same request, recipe, rules, jax and compiler."""
        return self._known.get(_key(_tree(request)))

    def add(self, request: PlanRequest, compiled: Compiled) -> None:
        tree = {**_tree(request), "compiled": compiled.to_tree()}
        if compiled.outcome == "fits":
            tree["bounds"] = bounds(request, compiled).to_tree()
        with named_errors(self._lines), self._lines.open("a") as file:
            file.write(json.dumps(tree) + "\n")
        self._known[_key(tree)] = compiled

    def write_tables(self, found: Iterable[Answer]) -> None:
        """Write the ranking of `found` as CSV and PNG."""
        rows = [_row(request, compiled) for request, compiled in ranked(found)]
        with atomic_open(self.directory / self.names[1]) as file:
            names = dict.fromkeys(name for row in rows for name in row)
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        with atomic_open(self.directory / self.names[2], "wb") as file:
            draw(ranked(found)).save(file, format="png")


def _tree(request: PlanRequest) -> dict[str, Any]:
    files = [Path(name) for name in (request.config, request.rules)]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()]
    asked = json.loads(json.dumps(request.to_tree()))
    compiler = compiler_release(request.machine)
    return {"request": asked, "jax": version("jax"), "compiler": compiler, "files": digests}


def _key(tree: dict[str, Any]) -> str:
    # Records of earlier releases name no compiler: they are nobody's answer.
    asked = [tree["request"], tree["jax"], tree.get("compiler"), tree.get("files", [])]
    return json.dumps(asked, sort_keys=True)


def _row(request: PlanRequest, compiled: Compiled) -> dict[str, Any]:
    asked = {k: v for k, v in asdict(request).items() if k not in ("settings", "config")}
    sizes = ("peak", "limit", "parameters", "optimizer", "activations", "temporaries")
    row = {**asked, "outcome": compiled.outcome}
    row |= {f"{name}_bytes": round(getattr(compiled, name)) for name in sizes}
    row["compiler"] = compiled.compiler
    row["compiling_seconds"] = round(compiled.compiling_seconds, 1)
    if compiled.outcome == "fits":
        row |= bounds(request, compiled).to_tree()
    return row
