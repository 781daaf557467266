"""Rows answered in other engines are those of a run, whichever batch they come in."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from florence_jax.batch.ray_beam import RowsAnswerer
from florence_jax.inference.requests import Query
from tests.batch.fakes import write_pictures
from tests.inference.results import assert_close
from tests.random_pipeline import random_checkpoint, small_pipeline

SETTINGS = {"max_new_tokens": 6, "num_beams": 1}


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    paths = write_pictures(tmp_path_factory.mktemp("pictures"), 5, (40, 30), broken=(3,))
    return [path.read_bytes() for path in paths]


def answerer(**changes):
    return RowsAnswerer(
        **{"model": str(random_checkpoint()), "tasks": "<CAPTION>", "batch_size": 2}
        | SETTINGS
        | changes
    )


def check(batch, contents, pipeline):
    """Columns of answers beside the pipeline's own."""
    for number, content in enumerate(contents):
        if number == 3:
            assert "is not an image" in batch["error"][number]
            assert (batch["answers"][number], batch["width"][number]) == ("[]", 0)
            continue
        assert batch["error"][number] == ""
        assert (batch["width"][number], batch["height"][number]) == (40, 30)
        (answer,) = json.loads(batch["answers"][number])
        assert_close(answer["result"], pipeline(content, "<CAPTION>", **SETTINGS))


def test_columns_in_and_columns_out(contents):
    rows = answerer()
    sent = pickle.dumps(rows)
    assert len(sent) < 2000
    batch = {"image": np.array(contents, object), "number": np.arange(5)}
    made = rows(batch)
    assert sorted(made) == ["answers", "error", "height", "number", "width"]
    np.testing.assert_array_equal(made["number"], np.arange(5))
    check(made, contents, small_pipeline())
    assert len(pickle.dumps(rows)) == len(sent), "the model does not travel"
    halves = [rows({"image": batch["image"][part]}) for part in (slice(0, 2), slice(2, 5))]
    for name in ("answers", "error", "width"):
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), made[name])


def test_rows_with_tasks_of_their_own(contents):
    rows = [{"image": content, "task": "<OD>", "truth": n} for n, content in enumerate(contents)]
    made = answerer(tasks=()).rows(rows)
    assert [row["truth"] for row in made] == list(range(5))
    assert list(made[0]["answers"][0]["result"]) == ["<OD>"]
    (refused,) = answerer(tasks=()).rows([{"image": contents[0]}])
    assert "no `task`" in refused["error"]
    with pytest.raises(ValueError, match="takes no input"):
        answerer(tasks=[Query(prompt="<OD>", text="cat")]).rows(rows)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_data(contents, monkeypatch):
    ray = pytest.importorskip("ray", reason="needs ray[data]")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        pictures = [{"image": content, "number": n} for n, content in enumerate(contents)]
        made = (
            ray.data.from_items(pictures)
            .map_batches(
                RowsAnswerer,
                fn_constructor_kwargs={"model": str(random_checkpoint()), "tasks": "<CAPTION>"}
                | SETTINGS,
                batch_size=2,
                concurrency=1,
            )
            .take_all()
        )
    finally:
        ray.shutdown()
    made.sort(key=lambda row: row["number"])
    assert [row["number"] for row in made] == list(range(5))
    check(
        {name: [row[name] for row in made] for name in made[0]},
        contents,
        small_pipeline(),
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Beam's own
def test_beam(contents):
    beam = pytest.importorskip("apache_beam", reason="needs apache-beam")
    from apache_beam.testing.util import assert_that

    rows = [{"image": content, "number": n} for n, content in enumerate(contents)]

    def are_right(made):
        made.sort(key=lambda row: row["number"])
        assert [row["number"] for row in made] == list(range(5))
        columns = {
            "answers": [json.dumps(row.get("answers", [])) for row in made],
            **{name: [row.get(name, 0) for row in made] for name in ("width", "height")},
            "error": [row.get("error", "") for row in made],
        }
        check(columns, contents, small_pipeline())

    with beam.Pipeline("DirectRunner") as pipeline:
        made = (
            pipeline
            | beam.Create(rows)
            | beam.BatchElements(max_batch_size=2)
            | beam.FlatMap(answerer().rows)
        )
        assert_that(made, are_right)
