"""Run by a process of its own: one device, and then all that XLA_FLAGS says, on the same items."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np

from florence_jax.batch.blocks import RunOptions
from florence_jax.batch.job import Item, ListSource
from florence_jax.batch.predict_job import PredictJob
from florence_jax.batch.run import run_blocks
from florence_jax.generation.generate import prepare_inputs
from florence_jax.generation.shard_inputs import shard_inputs
from florence_jax.inference import compiled
from florence_jax.inference.pipeline import replicate_over_local_devices
from florence_jax.inference.requests import Query
from tests.random_pipeline import small_pipeline


def main(folder: Path, constrained: bool) -> None:
    labels = ["cat"] if constrained else None
    queries = (
        Query(prompt="<OD>"),
        Query(prompt="<REGION_TO_CATEGORY>", region=[1, 2, 9, 9], labels=labels),
    )
    paths = sorted((folder / "pictures").iterdir())
    items = [Item(id=path.name, image=str(path), queries=queries[: 1 + number % 2])
             for number, path in enumerate(paths)]  # fmt: skip
    for count in (1, len(jax.devices())):
        pipeline = replicate_over_local_devices(small_pipeline(), jax.devices()[:count])
        # Greedy in the ordinary tests, which have little time.
        settings = dataclasses.replace(pipeline.generation, num_beams=2 if constrained else 1)
        job = PredictJob(pipeline, settings, batch_size=2, constrained=constrained)
        output = folder / str(count)
        summary = run_blocks(
            ListSource(items), job, output, RunOptions(block_size=7, workers=0), progress=False
        )
        assert summary.missing == 0


def no_collectives() -> None:
    """No device waits for another while answers are generated."""
    pipeline = replicate_over_local_devices(small_pipeline())
    programs = pipeline.programs
    rows = programs.batch_buckets(2)[0]
    encoded = programs.encode(np.zeros((rows, 64, 64, 3), np.float32))
    assert {len(one.sharding.device_set) for one in encoded} == {len(jax.devices())}
    prepared = prepare_inputs(
        programs.model, programs.params,
        image_features=np.zeros((rows, *encoded[0].shape), np.float32),
        input_ids=np.ones((rows, 16), np.int32), config=pipeline.generation,
    )  # fmt: skip
    divided = shard_inputs(prepared, programs.replicas)
    lowered = compiled.generate_on_replicas.lower(programs.replicas, *divided[:-1])
    text = lowered.compile().as_text()
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert collective not in text, collective


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]), json.loads(sys.argv[2]))
    else:
        no_collectives()
