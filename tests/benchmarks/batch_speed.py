"""What the runner keeps of the speed that the same batches have with pictures in memory.

    python -m tests.benchmarks.batch_speed --preset base --dtype bfloat16 --batch 32 --batches 40

End to end as in `florence-jax bench`, case "images": a batch's pictures resized, encoded and
answered, one call after the other. The runner does the same with files, worker processes and rows
on disk. Random weights; both in one process, in turns, their programs compiled before.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from florence_jax import config
from florence_jax.batch.job import Item, Listed
from florence_jax.batch.local_devices import over_local_devices
from florence_jax.batch.predict_job import PredictJob
from florence_jax.batch.run import run_blocks
from florence_jax.generation import PUBLISHED
from florence_jax.inference.pipeline import Florence2Pipeline
from florence_jax.inference.requests import Query
from florence_jax.model import Model, spread_params
from florence_jax.processing import demo_tokenizer, load_image
from tests.batch.fakes import write_pictures

QUERY = Query(prompt="<CAPTION>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="base", choices=sorted(config.PRESETS))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--image-size", type=int, default=768)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batches", type=int, default=8, help="in each turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--workers", type=int)
    options = parser.parse_args()
    pipeline = _pipeline(options)
    with tempfile.TemporaryDirectory() as folder:
        count = options.batch * options.batches
        paths = write_pictures(Path(folder) / "pictures", count, (640, 480))
        loaded = [load_image(path) for path in paths[: options.batch]]
        _in_memory(pipeline, loaded, options, 1)
        _runner(pipeline, paths[: options.batch], Path(folder) / "first", options)
        figures = []
        for turn in range(options.turns):
            memory = _in_memory(pipeline, loaded, options, options.batches)
            summary = _runner(pipeline, paths, Path(folder) / str(turn), options)
            runner = summary.rows / summary.seconds
            figures.append((memory, runner, runner / memory, summary.busy))
            print(
                f"turn {turn}: in memory {memory:.3f} images/s, runner {runner:.3f} images/s, "
                f"{runner / memory:.3f} of it; device busy {summary.busy:.1%}"
            )
    medians = [statistics.median(column) for column in zip(*figures, strict=True)]
    print(
        f"{options.preset}, {options.dtype}, {options.image_size} px, batch {options.batch}, "
        f"{options.beams} beams, {options.new_tokens} tokens, on {jax.devices()[0].device_kind}: "
        f"medians {medians[0]:.3f} and {medians[1]:.3f} images/s, ratio {medians[2]:.3f}, "
        f"device busy {medians[3]:.1%}"
    )


def _pipeline(options: argparse.Namespace) -> Florence2Pipeline:
    model = Model(config=config.PRESETS[options.preset](), dtype=options.dtype)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, options.dtype), spread_params(model.config, 0)
    )
    pipeline = Florence2Pipeline(model=model, params=params, tokenizer=demo_tokenizer())
    fields = {"size": (options.image_size, options.image_size)}

    return dataclasses.replace(
        pipeline,
        image_config=dataclasses.replace(pipeline.image_config, **fields),
        generation=dataclasses.replace(
            PUBLISHED, num_beams=options.beams, max_new_tokens=options.new_tokens
        ),
    )


def _in_memory(pipeline, pictures, options, batches) -> float:
    """Images a second of calls about decoded pictures."""
    began = time.monotonic()
    for _ in range(batches):
        # Copies: the pipeline would recognise the batch before.
        pipeline([np.array(one) for one in pictures], QUERY.prompt, batch_size=options.batch)
    return batches * len(pictures) / (time.monotonic() - began)


def _runner(pipeline, paths, directory, options):
    items = [Item(id=path.name, image=str(path), queries=(QUERY,)) for path in paths]
    job = PredictJob(over_local_devices(pipeline), batch_size=options.batch)
    return run_blocks(
        Listed(items), job, directory, block_size=options.batch * 4, workers=options.workers,
        progress=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
