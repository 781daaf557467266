"""Answers of a run are the pipeline's, to the last bit whoever their neighbours are."""

import dataclasses
import json
import random

import jax
import pytest

from florence_jax.batch.blocks import RunOptions
from florence_jax.batch.job import Item, ListSource
from florence_jax.batch.predict_job import PredictJob
from florence_jax.batch.run import run_blocks
from florence_jax.inference.device_stats import DeviceStats
from florence_jax.inference.requests import Query
from florence_jax.results.rows import result_to_json
from tests.batch.fakes import write_pictures
from tests.inference.results import assert_close
from tests.random_pipeline import small_pipeline

QUERIES = (
    Query(prompt="<OD>"),
    Query(prompt="<CAPTION>"),
    Query(prompt="<OPEN_VOCABULARY_DETECTION>", text=["cat", "dog"]),
    Query(prompt="<REGION_TO_CATEGORY>", region=[1, 2, 30, 20]),
)
BATCH = 4


@pytest.fixture(scope="module")
def pipeline():
    return small_pipeline()


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    """Pictures that are asked one to three of the queries; one is broken."""
    paths = write_pictures(tmp_path_factory.mktemp("pictures"), 14, (40, 30), broken=(5,))
    rng = random.Random(0)
    return [
        Item(id=path.name, image=str(path), queries=tuple(rng.sample(QUERIES, rng.randint(1, 3))))
        for path in paths
    ]


@pytest.fixture(scope="module")
def rows(pipeline, items, tmp_path_factory):
    return run(pipeline, items, tmp_path_factory.mktemp("rows"))


def run(pipeline, items, directory, *, block_size=9, **options):
    """The rows as text, by id."""
    job = PredictJob(pipeline, batch_size=BATCH, **options)
    run_blocks(
        ListSource(items),
        job,
        directory,
        RunOptions(block_size=block_size, workers=0),
        progress=False,
    )
    lines = [
        line
        for file in sorted(directory.glob("block-*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    return {json.loads(line)["id"]: line for line in lines}


def test_answers_are_the_pipelines_own(pipeline, items, rows):
    assert list(rows) == [item.id for item in items]
    asked = 0
    for item in items:
        row = json.loads(rows[item.id])
        if item.id == "005.png":
            assert "is not an image" in row["error"]
            continue
        assert (row["width"], row["height"]) == (40, 30)
        assert [answer["prompt"] for answer in row["answers"]] == [q.prompt for q in item.queries]
        for query, answer in zip(item.queries, row["answers"], strict=True):
            own = pipeline(item.image, query.prompt, text=query.text, region=query.region)
            assert_close(answer["result"], result_to_json(own))
            asked += 1
    assert asked > 20


@pytest.mark.parametrize("beams", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_neighbours_places_and_blocks_change_no_bit(pipeline, items, tmp_path, beams):
    settings = dataclasses.replace(pipeline.generation, num_beams=beams)
    rows = run(pipeline, items, tmp_path / "rows", generation=settings)
    for seed, block_size in enumerate((14, 5, 1)):
        shuffled = random.Random(seed).sample(items, len(items))
        options = {"block_size": block_size, "generation": settings}
        again = run(pipeline, shuffled, tmp_path / str(seed), **options)
        assert again == {item.id: rows[item.id] for item in shuffled}
        some = shuffled[: len(items) // 2]
        alone = run(pipeline, some, tmp_path / f"some{seed}", **options)
        assert alone == {item.id: rows[item.id] for item in some}


def test_queries_that_do_not_suit_are_errors_of_their_own(pipeline, items, tmp_path):
    bad = [
        Query(prompt="<OD>", text="nothing takes this"),
        Query(prompt="<CAPTION> and more"),
        Query(prompt="<OD>", labels=["cat"]),
        Query(prompt="a prompt that is far too long " * 200),
    ]
    good = items[0].queries
    mixed = [dataclasses.replace(items[0], queries=(*good, query)) for query in bad]
    mixed.append(dataclasses.replace(items[0], queries=tuple(bad[:2])))
    mixed = [dataclasses.replace(item, id=str(n)) for n, item in enumerate(mixed)]
    made = run(pipeline, [*mixed, items[1]], tmp_path)
    for number, message in enumerate(
        ("takes no input", "must be the whole prompt", "--constrained", "too long")
    ):
        *answers, error = json.loads(made[str(number)])["answers"]
        assert message in error["error"]
        assert "result" not in error
        assert "error" not in json.loads(made[str(number)])
        assert len(answers) == len(good)
        assert all("result" in answer for answer in answers)
    assert "takes no input" in json.loads(made["4"])["error"]


@pytest.mark.slow
def test_constrained_answers_keep_to_each_rows_labels(pipeline, items, tmp_path):
    query = Query(prompt="<REGION_TO_CATEGORY>", region=[1, 2, 30, 20])
    several = [["cat"], ["dog", "cow"], ["bird"]]
    asked = [
        Item(id=str(n), image=items[n].image,
             queries=(dataclasses.replace(query, labels=labels),))
        for n, labels in enumerate(several)
    ]  # fmt: skip
    made = run(pipeline, asked, tmp_path, constrained=True)
    for number, labels in enumerate(several):
        (answer,) = json.loads(made[str(number)])["answers"]
        # The published models repeat the region's box behind the label.
        assert answer["result"]["<REGION_TO_CATEGORY>"].partition("<loc_")[0] in labels
        assert answer["labels"] == labels


@pytest.mark.slow
def test_the_original_convention_answers_as_if_each_prompt_were_alone(items, tmp_path):
    original = small_pipeline(compat="original")
    made = run(original, items[:4], tmp_path)
    for item in items[:4]:
        for query, answer in zip(item.queries, json.loads(made[item.id])["answers"], strict=True):
            own = original(item.image, query.prompt, text=query.text, region=query.region)
            assert_close(answer["result"], result_to_json(own))


def test_what_rows_depend_on_is_in_the_fingerprint(pipeline):
    def fingerprint(pipeline=pipeline, **options):
        return json.dumps(PredictJob(pipeline, **options).fingerprint, sort_keys=True)

    other = small_pipeline()
    assert fingerprint() == fingerprint(other)
    seen = {fingerprint()}
    changed = jax.tree.map(lambda leaf: leaf * 1.0001, other.params)
    for value in (
        fingerprint(dataclasses.replace(other, params=changed)),
        fingerprint(dataclasses.replace(other, compat="native")),
        fingerprint(batch_size=16),
        fingerprint(constrained=True),
        fingerprint(generation=dataclasses.replace(pipeline.generation, num_beams=2)),
    ):
        assert value not in seen
        seen.add(value)


def test_settings_without_one_answer_are_refused(pipeline):
    for changes in ({"do_sample": True}, {"num_beams": 2, "num_return_sequences": 2}):
        settings = dataclasses.replace(pipeline.generation, **changes)
        with pytest.raises(ValueError, match="one answer to each question"):
            PredictJob(pipeline, settings)


def test_the_device_is_busy_and_tokens_are_counted(pipeline, items, tmp_path):
    job = PredictJob(pipeline, batch_size=BATCH)
    summary = run_blocks(
        ListSource(items), job, tmp_path, RunOptions(block_size=7, workers=0), progress=False
    )
    answers = sum(len(item.queries) for item in items if item.id != "005.png")
    assert answers <= summary.tokens <= answers * 10
    assert 0 < summary.utilization <= 1


def test_a_single_batch_gives_no_share_of_busy_time():
    """It ends with the first tokens, before which programs are compiled."""
    stats = DeviceStats()
    stats.begin()
    stats.end()
    stats.add_tokens(3)
    assert stats.utilization is None
