"""Speed of the batch runner as a share of the speed of one call about images in memory.

    python -m tests.benchmarks.batch_speed --preset base

The call is that of `python -m tests.benchmarks.rivals --cases images`: it resizes, encodes and
answers a batch of pictures in memory. The runner does the same with the same weights, with these
pictures as JPEG files and answers of the same length; worker processes, reading
and rows on disk come on top. Both take turns in one process, their programs compiled before; the
runner's time is that of a whole run, from no worker process to the last file.
"""

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from pathlib import Path

BLOCK_BATCHES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="base", help="tiny, base or large (default: base)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--image-size", type=int, default=768)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--batches", type=int, default=4, help="in each turn (default: 4)")
    parser.add_argument("--turns", type=int, default=3, help="default: 3")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--workers", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options)


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Print each turn's figures and their medians."""
    import jax

    pipeline, bench_call, pictures = _both(folder, options)
    paths = _written(pictures, folder / "pictures", options.batches)
    bench_call()
    _run(pipeline, paths[: options.batch], folder / "first", options)
    seconds: list[float] = []
    turns = []
    for turn in range(options.turns):
        calls = [_seconds(bench_call) for _ in range(options.batches)]
        summary = _run(pipeline, paths, folder / str(turn), options)
        bench = options.batch * options.batches / sum(calls)
        runner = summary.rows / summary.seconds
        assert summary.errors == summary.missing == 0
        assert summary.tokens == summary.rows * options.new_tokens
        seconds += calls
        turns.append((bench, runner, runner / bench, summary.utilization))
        print(
            f"turn {turn + 1}: bench {bench:.3f} images/s, runner {runner:.3f} images/s, "
            f"{runner / bench:.1%} of it; device busy {summary.utilization:.1%}",
            flush=True,
        )
    bench, runner, share, busy = (statistics.median(column) for column in zip(*turns, strict=True))
    ratios = sorted(turn[2] for turn in turns)
    print(
        f"{options.preset}, {options.dtype}, {options.image_size} px, batch {options.batch}, "
        f"3 beams, {options.new_tokens} tokens, {jax.local_device_count()} x "
        f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores: bench {bench:.3f} images/s "
        f"(a call takes {statistics.median(seconds):.2f} s, {min(seconds):.2f} to "
        f"{max(seconds):.2f}), runner {runner:.3f} images/s; the runner keeps {share:.1%} "
        f"({ratios[0]:.1%} to {ratios[-1]:.1%}), device busy {busy:.1%}"
    )


def _both(folder: Path, options: argparse.Namespace):
    """A pipeline, the benchmark's call with the same model, and the pictures that it is about."""
    import jax

    from florence_jax.generation import PUBLISHED
    from florence_jax.inference.pipeline import Florence2Pipeline
    from florence_jax.processing import demo_tokenizer
    from tests.benchmarks.rivals.engines.ours import Ours
    from tests.benchmarks.rivals.inputs import make_inputs
    from tests.benchmarks.rivals.settings import Settings
    from tests.benchmarks.rivals.weights import write_weights

    settings = Settings(
        weights=str(write_weights(options.preset, 0, folder)),
        platform="cuda" if jax.default_backend() == "gpu" else jax.default_backend(),
        dtype=options.dtype,
        threads=os.cpu_count() or 1,
        image_size=options.image_size,
        new_tokens=options.new_tokens,
        seed=0,
        cache=str(folder),
    )
    engine = Ours(settings)
    pipeline = Florence2Pipeline(
        model=engine.model,
        params=engine.params,
        tokenizer=demo_tokenizer(),
        generation=dataclasses.replace(
            PUBLISHED, min_new_tokens=options.new_tokens, max_new_tokens=options.new_tokens
        ),
    )
    size = (options.image_size, options.image_size)
    image_config = dataclasses.replace(pipeline.image_config, size=size)
    inputs = make_inputs(engine.model.config, settings, options.batch)
    pipeline = dataclasses.replace(pipeline, image_config=image_config)
    return pipeline, engine.call("images", inputs), inputs.pictures


def _written(pictures, folder: Path, copies: int) -> list[Path]:
    from PIL import Image

    folder.mkdir()
    paths = [folder / f"{number:05}.jpg" for number in range(copies * len(pictures))]
    for number, path in enumerate(paths):
        Image.fromarray(pictures[number % len(pictures)]).save(path, quality=90)
    return paths


def _seconds(call) -> float:
    import jax

    began = time.monotonic()
    jax.block_until_ready(call())
    return time.monotonic() - began


def _run(pipeline, paths, directory, options):
    from florence_jax.batch.blocks import RunOptions
    from florence_jax.batch.job import Item, ListSource
    from florence_jax.batch.predict_job import PredictJob
    from florence_jax.batch.run import run_blocks
    from florence_jax.inference.pipeline import replicate_over_local_devices
    from florence_jax.inference.requests import Query

    query = Query(prompt="<CAPTION>")
    items = [Item(id=path.name, image=str(path), queries=(query,)) for path in paths]
    job = PredictJob(replicate_over_local_devices(pipeline), batch_size=options.batch)
    return run_blocks(
        ListSource(items),
        job,
        directory,
        RunOptions(block_size=options.batch * BLOCK_BATCHES, workers=options.workers),
        progress=False,
    )


if __name__ == "__main__":
    main()
