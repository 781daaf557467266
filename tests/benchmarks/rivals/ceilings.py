"""What this machine can do at most, measured beside the engines: a large matmul, one long read."""

from __future__ import annotations

from collections.abc import Mapping

from tests.benchmarks.ceilings import Ceilings
from tests.benchmarks.rivals.engines.engine import EngineInfo
from tests.benchmarks.rivals.engines.sizes import matmul_side, memory_shape
from tests.benchmarks.rivals.processes import Worker, WorkerError
from tests.benchmarks.rivals.results import CaseResult, Row
from tests.benchmarks.rivals.rounds import Progress, time_in_turns
from tests.benchmarks.rivals.samples import summarise
from tests.benchmarks.rivals.settings import Settings

_FLOAT32_BYTES = 4


def measure_ceilings(
    workers: Mapping[str, Worker],
    engines: Mapping[str, EngineInfo],
    settings: Settings,
    rounds: int,
    progress: Progress,
) -> tuple[Ceilings | None, list[CaseResult]]:
    """The best that any engine reaches, in its fastest call, and a table for each."""
    able: dict[str, Worker] = {}
    for name, worker in workers.items():
        progress(name, "matmul")
        try:
            # Not compared with anything: the first call only warms up.
            answers = [worker.ask(do="time", call=call, batch=1) for call in ("matmul", "memory")]
        except WorkerError:
            continue
        if not any(answer.get("not_offered") for answer in answers):
            able[name] = worker
    if not able:
        return None, []
    samples, failures = time_in_turns(able, ("matmul", "memory"), 1, rounds, progress)
    rows_columns = memory_shape(settings)
    amounts = {
        "matmul": 2 * matmul_side(settings) ** 3,
        "memory": rows_columns[0] * rows_columns[1] * _FLOAT32_BYTES,
    }
    titles = {
        "matmul": f"{settings.dtype} matrices of {matmul_side(settings):,} squared multiplied",
        "memory": f"{amounts['memory'] / 2**20:,.0f} MiB of float32 read, matrix times vector",
    }
    best: dict[str, float] = {}
    results = []
    for call, amount in amounts.items():
        summaries = {
            name: summarise(found[call]) for name, found in samples.items() if name not in failures
        }
        best[call] = amount / min(summary.fastest for summary in summaries.values())
        unit = f"{best[call] / 1e9:,.1f} {'GFLOP/s' if call == 'matmul' else 'GB/s'} at most"
        rows = {
            name: Row(label=engines[name].label, summary=summary)
            for name, summary in summaries.items()
        }
        results.append(
            CaseResult(case=call, title=f"{titles[call]}: {unit}", context={}, rows=rows)
        )
    ceilings = Ceilings(flops_per_second=best["matmul"], bytes_per_second=best["memory"])
    return ceilings, results
