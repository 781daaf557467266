"""Run by a process of its own: one device, and then a mesh of all that XLA_FLAGS says."""

import dataclasses
import sys
from pathlib import Path

from florence_jax.batch.blocks import RunOptions
from florence_jax.batch.job import Item, ListSource
from florence_jax.batch.predict_job import PredictJob
from florence_jax.batch.run import run_blocks
from florence_jax.cli import annotate as annotate_command
from florence_jax.cli.main import main
from florence_jax.inference.load_sharded import make_param_sharding, to_mesh
from florence_jax.inference.requests import Query
from tests.random_pipeline import small_pipeline

QUERIES = (Query(prompt="<OD>"), Query(prompt="<REGION_TO_CATEGORY>", region=[1, 2, 9, 9]))


def shard_pipeline(pipeline, mesh: str):
    """The pipeline with its parameters divided on a mesh."""
    layout = make_param_sharding(pipeline.model.config, mesh, "fsdp_tp")
    model = dataclasses.replace(pipeline.model, layout=layout)
    return dataclasses.replace(pipeline, model=model, params=to_mesh(pipeline.params, layout))


def predict(pictures: Path, output: Path, pipeline) -> None:
    items = [
        Item(id=path.name, image=str(path), queries=QUERIES) for path in sorted(pictures.iterdir())
    ]
    job = PredictJob(pipeline, batch_size=4)
    summary = run_blocks(
        ListSource(items), job, output, RunOptions(block_size=5, workers=0), progress=False
    )
    assert summary.missing == 0


def annotate(pictures: Path, output: Path, *options: str) -> None:
    words = ["annotate", str(pictures), "--output", str(output), "--model", "random", "--only",
             "regions", "--no-completion", "--analyser", "rules", "--workers", "0", "--batch-size",
             "4", "--block-size", "5", "--max-new-tokens", "24", "--quiet"]  # fmt: skip
    thresholds = ["--threshold", "box_score=0", "--threshold", "label_score=0"]
    assert main([*words, *thresholds, *options]) == 1, "one picture is broken"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    mesh = "data=2,tensor=2"
    predict(folder / "pictures", folder / "one", small_pipeline())
    predict(folder / "pictures", folder / "mesh", shard_pipeline(small_pipeline(), mesh))
    annotate_command.load_pipeline = lambda options, progress: (
        small_pipeline() if options.mesh is None else shard_pipeline(small_pipeline(), options.mesh)
    )
    annotate(folder / "pictures", folder / "annotated-one")  # the four divide batches alone
    annotate(folder / "pictures", folder / "annotated-mesh", "--mesh", mesh)
