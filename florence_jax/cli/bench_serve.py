"""`florence-jax bench --serve`: answers a second of a server, by task and number of callers."""

from __future__ import annotations

import asyncio
import io
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from florence_jax.generation import GenerationConfig
    from florence_jax.inference.pipeline import Florence2Pipeline
    from florence_jax.serving.load import Asked

# Different images of each task: more than the server answers in one batch.
_IMAGES = 24
_MIXED = "all of them mixed"


def measure_server(
    pipeline: Florence2Pipeline,
    settings: GenerationConfig,
    *,
    tasks: Sequence[str],
    batch_sizes: Sequence[int],
    callers: Sequence[int],
    requests: int,
) -> Iterator[dict[str, Any]]:
    """Start a server on a free port for each batch size, and let callers ask it.

    Images are crops of the bundled model's held-out scenes, sent as files, and no features are
    kept from one request for the next.

    Args:
        pipeline: the model.
        settings: of decoding.
        tasks: prompts.
        batch_sizes: of the server.
        callers: numbers of them.
        requests: of each measurement.

    Yields:
        A row for each task, and for all of them mixed, by batch size and callers: `case`,
        `batch_size`, `callers`, `p50`, `p95`, `p99` (seconds until the answer), `per_second`, and
        `equal`, the share of answers that are the pipeline's.
    """
    from florence_jax.cli.serve import check_extra, warm_up_service

    check_extra()
    from florence_jax.serving.load import run_load
    from florence_jax.serving.server import Server, listen
    from florence_jax.serving.service import Service
    from florence_jax.serving.settings import ServerSettings

    cases = {task: _asked(pipeline, settings, task) for task in tasks}
    if len(cases) > 1:
        cases[_MIXED] = [*itertools.chain.from_iterable(cases.values())]
    for batch_size in batch_sizes:
        limits = ServerSettings(batch_size=batch_size, cache_bytes=0, timeout=600)
        service = Service(pipeline, limits, settings)
        warm_up_service(service)
        with Server(service, log=lambda line: None).on_thread(listen("127.0.0.1", 0)) as url:
            for case, asked in cases.items():
                # Compiles what no warm-up knows, and learns how long the answers are.
                asyncio.run(run_load(url, asked, callers=max(callers), requests=4 * batch_size))
                for count in callers:
                    load = asyncio.run(run_load(url, asked, callers=count, requests=requests))
                    percentiles = {
                        f"p{share}": load.percentile(share / 100) for share in (50, 95, 99)
                    }
                    yield {
                        "case": case,
                        "batch_size": batch_size,
                        "callers": count,
                        **percentiles,
                        "per_second": load.per_second,
                        "equal": 1 - len(load.wrong) / sum(load.statuses.values()),
                    }


def server_line(row: dict[str, Any]) -> str:
    """A row of the table."""
    times = "".join(f"{row[name]:>9.3f}" for name in ("p50", "p95", "p99"))
    return (
        f"{row['case'][:31]:<32}{row['batch_size']:>6}{row['callers']:>9}{times}"
        f"{row['per_second']:>12.2f}{row['equal']:>8.1%}"
    )


def server_header() -> str:
    """The head of the table."""
    times = "".join(f"{name:>9}" for name in ("p50", "p95", "p99"))
    return f"{'case':<32}{'batch':>6}{'callers':>9}{times}{'answers/s':>12}{'equal':>8}"


def _asked(pipeline: Florence2Pipeline, settings: GenerationConfig, task: str) -> list[Asked]:
    """Requests about different images, with the pipeline's own results."""
    from florence_jax.results.rows import result_to_json
    from florence_jax.serving.load import Asked

    images = list(itertools.islice(scene_crops(), _IMAGES))
    results = pipeline(images, [task] * len(images), generation=settings)
    return [
        Asked(image=image, prompt=task, expected=result_to_json(result))
        for image, result in zip(images, results, strict=True)
    ]


def scene_crops() -> Iterator[bytes]:
    """Files of the held-out scenes, cut by a pixel more each time: no two have the same content."""
    from PIL import Image

    from florence_jax.demo import SHAPES

    files = sorted((SHAPES / "scenes" / "test").glob("*.png"))
    scenes = [Image.open(file).convert("RGB") for file in files]
    for number in itertools.count():
        for scene in scenes:
            file = io.BytesIO()
            scene.crop((number, 0, *scene.size)).save(file, "png")
            yield file.getvalue()
