"""`florence-jax bench`: images and tokens a second of a model on this machine, by batch size."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence_jax.cli.options import (
    DECODING,
    MODEL,
    ModelOptions,
    add_shared,
    decoding_from,
    decoding_settings,
    load_checkpoint_pipeline,
    options_from,
)
from florence_jax.runtime.program_parser import positive

if TYPE_CHECKING:
    import numpy as np

    from florence_jax.generation import GenerationConfig
    from florence_jax.inference.pipeline import Florence2Pipeline

_DESCRIPTION = """\
Time a model on the device that jax chooses here: images of noise, answers of exactly as many tokens
as --max-new-tokens says (default: 64). The first call includes compiling, or reading the compiled
programs from the cache; the others are warm.

With --serve, a server of its own is asked by callers at the same time, about different images, and
answers are as long as the model makes them.
"""
_EPILOG = """\
columns: first, seconds of the first call; warm, the median of the rounds and their range; images/s,
of calls that encode new images and answer; tokens/s, of calls about images encoded before. With
--serve: p50, p95 and p99, seconds until the answer; equal, answers that are the pipeline's.

examples:
  florence-jax bench --model shapes
  florence-jax bench --task "<OD>" --batch-size 1 --batch-size 8 --json bench.jsonl
  JAX_PLATFORMS=cpu florence-jax bench --dtype bfloat16 --beams 1
  florence-jax bench --model shapes --serve --callers 1 --callers 32
"""


def add_bench(commands: Any) -> None:
    """Add the subcommand to an argparse `add_subparsers` object."""
    bench = commands.add_parser(
        "bench",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    add_shared(bench, *MODEL, *DECODING, "--free-prompt")
    bench.add_argument(
        "--task",
        action="append",
        help="a prompt with its input, such as '<CAPTION_TO_PHRASE_GROUNDING>a dog'; repeat it for "
        "several (default: <CAPTION> and <OD>)",
    )
    bench.add_argument(
        "--batch-size",
        type=positive,
        action="append",
        help="repeat it for several (default: 1, 4, 8)",
    )
    bench.add_argument("--rounds", type=int, default=5, help="warm calls (default: %(default)s)")
    bench.add_argument("--serve", action="store_true", help="time a server of the model")
    bench.add_argument(
        "--callers",
        type=positive,
        action="append",
        help="with --serve, callers at the same time; repeat it for several (default: 1, 8, 32)",
    )
    bench.add_argument(
        "--requests",
        type=positive,
        help="with --serve, requests of each row (default: 200)",
    )
    bench.add_argument("--json", type=Path, metavar="FILE", help="append one JSON line a row")
    bench.set_defaults(run=_bench)


def _bench(arguments: argparse.Namespace) -> int:
    from florence_jax.inference.declared_tasks import check_queries
    from florence_jax.inference.requests import Query

    if arguments.rounds < 1:
        raise ValueError(f"--rounds is {arguments.rounds}, expected at least 1")
    for name in ("callers", "requests"):
        if getattr(arguments, name) is not None and not arguments.serve:
            raise ValueError(f"--{name} belongs to --serve: give both")
    options, decoding = options_from(ModelOptions, arguments), decoding_from(arguments)
    tasks = arguments.task or ["<CAPTION>", "<OD>"]
    check_queries(
        [Query(prompt=task) for task in tasks],
        model=options.model,
        revision=options.revision,
        free_prompt=arguments.free_prompt,
    )
    pipeline = load_checkpoint_pipeline(options, progress=True)
    settings = decoding_settings(pipeline, decoding)
    if arguments.serve:
        return _bench_server(arguments, pipeline, settings, tasks, _context(options, settings))
    count = arguments.max_new_tokens or 64
    settings = dataclasses.replace(settings, min_new_tokens=count, max_new_tokens=count)
    context = _context(options, settings)
    _print_context(context)
    print(f"{'case':<32}{'batch':>6}{'first':>10}{'warm':>26}{'images/s':>10}{'tokens/s':>10}")
    for row in measure(
        pipeline,
        settings,
        tasks=tasks,
        batch_sizes=arguments.batch_size or [1, 4, 8],
        rounds=arguments.rounds,
        free_prompt=arguments.free_prompt,
    ):
        print(_line(row), flush=True)
        _save(arguments.json, context | row)
    return 0


def _bench_server(
    arguments: argparse.Namespace,
    pipeline: Florence2Pipeline,
    settings: GenerationConfig,
    tasks: list[str],
    context: dict[str, Any],
) -> int:
    from florence_jax.cli.bench_serve import measure_server, server_header, server_line

    _print_context(context)
    print(server_header())
    rows = measure_server(
        pipeline,
        settings,
        tasks=tasks,
        batch_sizes=arguments.batch_size or [8],
        callers=arguments.callers or [1, 8, 32],
        requests=arguments.requests or 200,
    )
    are_equal = True
    for row in rows:
        print(server_line(row), flush=True)
        _save(arguments.json, context | row)
        are_equal &= row["equal"] == 1
    return 0 if are_equal else 1


def _print_context(context: dict[str, Any]) -> None:
    print(", ".join(f"{name} {value}" for name, value in context.items()))


def _save(file: Path | None, row: dict[str, Any]) -> None:
    if file is not None:
        with file.open("a", encoding="utf-8") as output:
            print(json.dumps(row), file=output)


def measure(
    pipeline: Florence2Pipeline,
    settings: GenerationConfig,
    *,
    tasks: list[str],
    batch_sizes: list[int],
    rounds: int,
    free_prompt: bool = False,
) -> Iterator[dict[str, Any]]:
    """Time each task and the image encoder at each batch size.

    Args:
        pipeline: the model.
        settings: its answers are this long exactly where both token limits are equal.
        tasks: prompts.
        batch_sizes: images in a call.
        rounds: warm calls of each.
        free_prompt: allow prompts that look like a task and are none.

    Yields:
        A row for each task and for "encode": `case`, `batch_size`, `first_call_seconds`, `seconds`
        (of the warm calls), `images_per_second`, and `tokens_per_second` of a task.
    """
    encode = functools.partial(_encode, pipeline)
    for batch_size in batch_sizes:
        batches = _noise_batches(batch_size)
        for task in tasks:
            answer = functools.partial(_answer, pipeline, settings, task, free_prompt)
            row = _timed(task, answer, itertools.islice(batches, rounds + 1))
            encoded = encode(next(batches))
            answer(encoded)  # compiles what a batch of encoded images needs
            seconds = [_seconds(answer, encoded) for _ in range(rounds)]
            tokens = batch_size * (settings.max_new_tokens or 0)
            yield row | {"tokens_per_second": tokens / statistics.median(seconds)}
        yield _timed("encode", encode, itertools.islice(batches, rounds + 1))


def _answer(
    pipeline: Florence2Pipeline,
    settings: GenerationConfig,
    task: str,
    free_prompt: bool,
    images: list[Any],
) -> None:
    from florence_jax.inference.requests import Request

    requests = [Request(image=image, prompt=task) for image in images]
    list(pipeline.answer(requests, settings, batch_size=len(images), free_prompt=free_prompt))


def _encode(pipeline: Florence2Pipeline, images: list[Any]) -> list[Any]:
    import jax

    encoded = pipeline.encode(images, batch_size=len(images))
    jax.block_until_ready([image.features for image in encoded])
    return encoded


def _timed(
    case: str, call: Callable[[list[Any]], Any], batches: Iterator[list[Any]]
) -> dict[str, Any]:
    images: list[Any] = next(batches)
    first = _seconds(call, images)
    warm = [_seconds(call, batch) for batch in batches]
    return {
        "case": case,
        "batch_size": len(images),
        "first_call_seconds": first,
        "seconds": warm,
        "images_per_second": len(images) / statistics.median(warm),
    }


def _seconds(call: Callable[[list[Any]], Any], images: list[Any]) -> float:
    start = time.perf_counter()
    call(images)
    return time.perf_counter() - start


def _noise_batches(batch_size: int) -> Iterator[list[np.ndarray]]:
    """Batches of noise, all different: the pipeline would not encode an image twice."""
    import numpy as np

    generator = np.random.default_rng(batch_size)
    while True:
        yield list(generator.integers(0, 256, (batch_size, 480, 640, 3), np.uint8))


def _context(options: ModelOptions, settings: GenerationConfig) -> dict[str, Any]:
    import jax

    return {
        "model": options.model,
        "dtype": options.dtype or "float32",
        "matmul_precision": options.matmul_precision or "highest",
        "quantize": options.quantize or "none",
        "mesh": options.mesh or "none",
        "beams": settings.num_beams,
        "new_tokens": settings.max_new_tokens,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
    }


def _line(row: dict[str, Any]) -> str:
    seconds = row["seconds"]
    warm = f"{statistics.median(seconds):.3f} ({min(seconds):.3f}-{max(seconds):.3f}) s"
    tokens = f"{row['tokens_per_second']:.1f}" if "tokens_per_second" in row else ""
    return (
        f"{row['case'][:31]:<32}{row['batch_size']:>6}{row['first_call_seconds']:>8.2f} s"
        f"{warm:>26}{row['images_per_second']:>10.2f}{tokens:>10}"
    )
