"""Stage 3: tower, encoder, decoding and whole answers beside transformers, in turns.

The engines, cases, checks and timing are those of `tests.benchmarks.rivals`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from florence_jax.model import random_params_with_spread_logits
from florence_jax.runtime.atomic_file import atomic_write
from tests.benchmarks.accelerator.plan import Context, Sizes, Unit, config_of
from tests.benchmarks.accelerator.report import Row
from tests.benchmarks.rivals.cases import CASES
from tests.benchmarks.rivals.engines.engine import ENGINES, OURS, EngineInfo
from tests.benchmarks.rivals.processes import Worker
from tests.benchmarks.rivals.results import CaseResult
from tests.benchmarks.rivals.run import Bench
from tests.benchmarks.rivals.settings import Settings
from tests.benchmarks.rivals.weights import prepare_weights, write_params

_STAGE = "speed"
_INT8 = EngineInfo(
    label="florence-jax, int8", factory=f"{__name__}:int8", platforms=("cpu", "cuda")
)
# (case, images in a call) -> least share of the ceiling, rival, how many times its speed.
_TARGETS = {
    ("vision", 32): (0.45, "torch-compile", 1.2),
    ("beam", 32): (0.35, "best", 5.0),
    ("greedy", 1): (None, "best", 1.5),
    ("images", 1): (None, "best", 3.0),
    ("images", 32): (None, "best", 3.0),
}
# For loading, or for a first run, which compiles. A rival that takes longer is left out, so that
# the others are measured within the time of the unit.
_SECONDS_OF_A_RIVAL = 120.0
# Of `large`, one image, 3 beams, 128 tokens: TensorRT-LLM's published figure.
_LATENCY_TOKENS, _LATENCY_SECONDS = 128, 0.240


def units(sizes: Sizes) -> list[Unit]:
    first, last = sizes.batches[0], sizes.batches[-1]
    # The largest first: it has most of the targets.
    ends = tuple(dict.fromkeys((last, first)))

    def unit(name: str, seconds: float, cases: Sequence[str], batches: Sequence[int]) -> Unit:
        run = functools.partial(beside_rivals, cases=cases, batches=batches)
        return Unit(stage=_STAGE, name=name, seconds=seconds, run=run)

    return [
        unit("tower", 300, ("vision",), sizes.batches[::-1]),
        unit("beam search", 400, ("encoder", "beam", "step"), ends),
        unit("greedy", 240, ("greedy",), (first,)),
        # The weights of large are drawn and written to disk first.
        Unit(stage=_STAGE, name="large", seconds=300, run=large_latency),
        Unit(stage=_STAGE, name="int8", seconds=120, run=int8_beside_halves),
        *(
            Unit(
                stage=_STAGE,
                name=f"end to end {task}",
                seconds=240,
                run=functools.partial(end_to_end, task=task, tokens=tokens, batches=ends),
            )
            for task, tokens in sizes.task_tokens.items()
        ),
    ]


def beside_rivals(
    context: Context, *, cases: Sequence[str], batches: Sequence[int]
) -> Iterator[Row]:
    """Our time, its share of what the ceilings allow, and how many times the rivals'."""
    names = (OURS, *context.sizes.rivals)
    engines = {name: ENGINES[name] for name in names}
    for result in bench(context, engines, cases, batches).run(lambda *_: None):
        yield from rows(context, result)


def end_to_end(
    context: Context, *, task: str, tokens: int, batches: Sequence[int]
) -> Iterator[Row]:
    """Pictures to tokens, resizing included, with answers as long as the task's usually are."""
    names = (OURS, *context.sizes.rivals)
    measured = bench(
        context, {name: ENGINES[name] for name in names}, ("images",), batches, tokens=tokens
    )
    for result in measured.run(lambda *_: None):
        yield from rows(context, result, f"{task}, {tokens} tokens, ")


def large_latency(context: Context) -> Iterator[Row]:
    """The large model: one image, 3 beams."""
    tokens = min(_LATENCY_TOKENS, 2 * context.sizes.new_tokens)
    measured = bench(
        context, {OURS: ENGINES[OURS]}, ("beam",), (1,), model=context.sizes.large, tokens=tokens
    )
    for result in measured.run(lambda *_: None):
        summary = result.rows[OURS].summary
        if summary is None:
            yield Row(stage=_STAGE, what="large", note=result.rows[OURS].note or "no time")
            continue
        yield Row(
            stage=_STAGE,
            what=f"{context.sizes.large}, 1 image, 3 beams, {tokens} tokens",
            value=summary.median * 1e3,
            unit="ms",
            share=result.share(OURS),
            target=f"< {_LATENCY_SECONDS * 1e3:.0f} ms",
            met=summary.median < _LATENCY_SECONDS,
            details=result.to_json(),
        )


def int8_beside_halves(context: Context) -> Iterator[Row]:
    """Beam search with int8 weights beside the same without, both ours; answers may differ."""
    medians = {}
    for name, engine in ((context.sizes.dtype, ENGINES[OURS]), ("int8", _INT8)):
        for result in bench(context, {OURS: engine}, ("beam",), (1,)).run(lambda *_: None):
            row = result.rows[OURS]
            if row.summary is None:
                yield Row(stage=_STAGE, what=f"beam B1, {name}", note=row.note or "no time")
                continue
            medians[name] = row.summary.median
            both = len(medians) == 2
            ratio = medians[context.sizes.dtype] / medians["int8"] if both else None
            yield Row(
                stage=_STAGE,
                what=f"beam B1, ours, {name}",
                value=row.summary.median * 1e3,
                unit="ms",
                target="faster than without" if both else "",
                met=None if ratio is None else ratio > 1.0,
                note="" if ratio is None else f"{ratio:.2f} times {context.sizes.dtype}'s speed",
                details=result.to_json(),
            )


def bench(
    context: Context,
    engines: dict[str, EngineInfo],
    cases: Sequence[str],
    batches: Sequence[int],
    *,
    model: str = "",
    tokens: int = 0,
) -> Bench:
    """The rivals' measurement, with this run's ceilings."""
    sizes = context.sizes
    weights = weights_of(context, model or sizes.model)
    settings = Settings(
        weights=weights,
        platform=context.platform,  # pyright: ignore[reportArgumentType]
        dtype=sizes.dtype,
        threads=context.threads,
        image_size=sizes.side,
        new_tokens=tokens or sizes.new_tokens,
        seed=0,
        cache=weights,
    )
    return Bench(
        model=model or sizes.model,
        settings=settings,
        engines=engines,
        cases=cases,
        batches=batches,
        rounds=sizes.rounds,
        malloc="default",
        folder=Path(context.folder) / "weights",
        ceilings=context.ceilings,
        start=Local if context.quick else _worker,  # pyright: ignore[reportArgumentType]
        together=not context.quick,
    )


def _worker(engine: EngineInfo, settings: Settings, variables: dict[str, str]) -> Worker:
    rival = engine not in (ENGINES[OURS], _INT8)
    return Worker(engine, settings, variables, limit=_SECONDS_OF_A_RIVAL if rival else None)


def weights_of(context: Context, model: str) -> str:
    """The directory of `model`'s random weights, made by the first unit that needs them."""
    folder = Path(context.folder) / "weights"
    known = folder / f"{model}.txt"
    if not known.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if context.quick:
            config = config_of(model)
            made = write_params(config, random_params_with_spread_logits(config, 0), folder)
        else:
            made = prepare_weights(model, 0, folder)
        atomic_write(known, str(made))
    return known.read_text(encoding="utf-8")


def rows(context: Context, result: CaseResult, what: str = "") -> Iterator[Row]:
    """A case's row for ours, then one for each rival."""
    if result.case not in CASES:
        return
    batch = result.context["batch"]
    label = f"{what}{result.title}, B{batch}"
    share, rival, factor = _TARGETS.get((result.case, batch), (None, "", None))
    for name, row in result.rows.items():
        if row.summary is None:
            yield Row(stage=_STAGE, what=f"{label}: {row.label}", note=row.note or "no time")
            continue
        rate = f"{batch / row.summary.median:.4g} images/s"
        if name != OURS:
            ratio = result.ratio(name)
            yield Row(
                stage=_STAGE,
                what=f"{label}: {row.label}",
                value=row.summary.median * 1e3,
                unit="ms",
                share=result.share(name),
                note=rate + ("" if ratio is None else f", {ratio:.2f} times our time"),
            )
            continue
        found, wanted, met = result.share(OURS), [], []
        if share is not None:
            wanted.append(f">= {share:.0%} of the ceiling")
            met.append(found is not None and found >= share)
        if factor is not None:
            ratio = result.ratio(None if rival == "best" else rival)
            wanted.append(f">= {factor:g} times {'the best rival' if rival == 'best' else rival}")
            met.append(ratio is not None and ratio >= factor)
        yield Row(
            stage=_STAGE,
            what=f"{label}: {row.label}",
            value=row.summary.median * 1e3,
            unit="ms",
            share=found,
            target=" and ".join(wanted),
            met=all(met) if met else None,
            note=rate,
            details=result.to_json(),
        )


class Local:
    """A worker of the rivals' harness in this process, for the quick form alone."""

    def __init__(self, engine: EngineInfo, settings: Settings, variables: dict[str, str]):
        import dataclasses

        from tests.benchmarks.rivals.worker import Server

        hello = {"engine": dataclasses.asdict(engine), "settings": dataclasses.asdict(settings)}
        self._server = Server(hello)

    def ask(self, **request: Any) -> dict[str, Any]:
        return self._server.answer(request)

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def int8(settings: Settings) -> Any:
    """Our engine with int8 weights; the encoder's stand-ins for images are the same floats."""
    import jax.numpy as jnp

    from florence_jax.quantization import quantized
    from tests.benchmarks.rivals.engines.ours import Ours

    class Int8(Ours):
        def _split(self, inputs: Any) -> tuple[Any, Any]:
            prompt = jnp.asarray(inputs.prompt_ids)
            return table[inputs.source_ids[:, : -prompt.shape[1]]], prompt

    engine = Int8(settings)
    table = engine.params["shared"]["embedding"]
    engine.params = quantized(engine.params, "int8")
    return engine
