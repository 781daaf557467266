"""The run that `test_storm` kills: the tiny model, one answer of a few tokens for each picture."""

import dataclasses
from pathlib import Path

from florence_jax.batch.blocks import RunOptions
from florence_jax.batch.predict_job import PredictJob
from florence_jax.batch.run import run_blocks
from florence_jax.batch.sources.open import open_source
from tests.random_pipeline import random_pipeline

BLOCK = 16


def tiny_job() -> PredictJob:
    """The random model with pictures of 32 x 32 pixels and answers of four tokens."""
    pipeline = random_pipeline()
    pipeline = dataclasses.replace(
        pipeline, image_config=dataclasses.replace(pipeline.image_config, size=(32, 32))
    )
    settings = dataclasses.replace(pipeline.generation, num_beams=1, max_new_tokens=4)
    return PredictJob(pipeline, settings, batch_size=BLOCK)


def main(folder: Path, output: Path, workers: int) -> None:
    source = open_source([folder / "rows.jsonl"])
    summary = run_blocks(
        source, tiny_job(), output, RunOptions(block_size=BLOCK, workers=workers), progress=False
    )
    assert summary.missing == 0
