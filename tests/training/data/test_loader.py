import json

import jax
import numpy as np
import pytest
from PIL import Image

from florence_jax.processing import demo_tokenizer
from florence_jax.training.data.augment import AugmentConfig
from florence_jax.training.data.example import DataError
from florence_jax.training.data.loader import DataLoader, finite_batches
from florence_jax.training.data.preprocess import Preprocessor
from florence_jax.training.data.tabular import Jsonl

TOKENIZER = demo_tokenizer()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Seven pictures of their own colours, the last one damaged."""
    folder = tmp_path_factory.mktemp("rows")
    lines = []
    for number in range(7):
        name = f"{number}.png"
        Image.new("RGB", (40, 30), (number * 30, 0, 0)).save(folder / name)
        lines.append({"image": name, "prefix": "<CAPTION>", "suffix": "a " * (number + 1)})
    content = (folder / "6.png").read_bytes()
    (folder / "6.png").write_bytes(content[: len(content) // 2])
    path = folder / "annotations.jsonl"
    path.write_text("".join(json.dumps(line) + "\n\n" for line in lines))
    return path


def stream(path, **settings):
    source = Jsonl(path)
    preprocessor = Preprocessor(
        tokenizer=TOKENIZER, image_size=(16, 16), augmentation=AugmentConfig(colour=0.5)
    )
    settings = {"batch_size": 4, "seed": 3} | settings
    return DataLoader(sources=(("rows", source, 1.0),), preprocessor=preprocessor, **settings)


def assert_same(actual, expected):
    assert actual.ids == expected.ids
    assert actual.problems == expected.problems
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("ahead", [{"threads": 0}, {"threads": 4}, {"threads": 1, "workers": 2}])
def test_a_batch_is_a_function_of_seed_and_step(rows, ahead):
    expected = [stream(rows).batch(step) for step in range(6)]
    batches = stream(rows).batches(2, **ahead)
    for step in range(2, 6):
        assert_same(next(batches), expected[step])
    assert stream(rows, seed=4).batch(0).ids != expected[0].ids


def test_an_epoch_holds_every_row_once_and_the_next_another_order(rows):
    ids = [id for step in range(14) for id in stream(rows).batch(step).ids]
    epochs = [ids[start : start + 7] for start in range(0, 56, 7)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == 7 for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 4


def test_augmentation_differs_by_epoch_and_not_by_worker(rows):
    seen = {}
    for step in range(14):
        batch = stream(rows).batch(step)
        for id, image in zip(batch.ids, batch.images[0], strict=True):
            seen.setdefault(id, set()).add(image.tobytes())
    assert len(seen[f"{rows}:3"]) > 4


def test_hosts_and_micro_batches_only_split_the_same_rows(rows):
    whole = stream(rows).batch(5)
    halves = [stream(rows, host=host, hosts=2).batch(5) for host in range(2)]
    assert halves[0].ids + halves[1].ids == whole.ids
    micro = stream(rows, micro=2).batch(5)
    assert micro.ids == whole.ids
    assert micro.labels.shape == (2, 2, 32)
    np.testing.assert_array_equal(micro.labels.reshape(4, 32), whole.labels.reshape(4, 32))


def test_a_row_that_cannot_be_read_weighs_nothing_and_shifts_nothing(rows):
    for step in range(7):
        batch = stream(rows).batch(step)
        weightless = {id for id, _ in batch.problems}
        assert weightless == {f"{rows}:6"} & set(batch.ids)
        for id, labels in zip(batch.ids, batch.labels[0], strict=True):
            assert (labels == -100).all() == (id in weightless)
        assert all("6.png" in reason for _, reason in batch.problems)


def test_labels_are_what_a_generation_emits(rows):
    batch = stream(rows).batch(0)
    row = batch.labels[0, 0]
    ids = row[row != -100].tolist()
    assert (ids[0], ids[-1]) == (TOKENIZER.bos_id, TOKENIZER.eos_id)
    number = int(batch.ids[0].partition(":")[2])
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "a " * (number + 1)


def test_too_long_is_a_problem_and_nothing_is_cut(rows):
    preprocessor = Preprocessor(tokenizer=TOKENIZER, image_size=(16, 16), max_labels=6)
    batches = list(finite_batches({"rows": Jsonl(rows)}, preprocessor, 4))
    problems = dict(problem for batch in batches for problem in batch.problems)
    assert "more than max_labels=6" in problems[f"{rows}:5"]
    assert f"{rows}:0" not in problems


def test_targets_are_padded_to_buckets(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    rows = [{"image": "0.png", "prefix": "<CAPTION>", "suffix": "abc " * 20}]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
    batch = stream(tmp_path / "a.jsonl", batch_size=1).batch(0)
    length = (batch.labels != -100).sum()
    assert 32 < length <= 128
    assert batch.labels.shape[-1] == (64 if length <= 64 else 128)


def test_evaluation_sees_every_row_once(rows):
    preprocessor = Preprocessor(tokenizer=TOKENIZER, image_size=(16, 16))
    batches = list(finite_batches({"rows": Jsonl(rows)}, preprocessor, 4))
    ids = [id for batch in batches for id in batch.ids]
    assert ids == [f"{rows}:{number}" for number in range(7)] + [""]
    assert (batches[-1].labels[0, -1] == -100).all()


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd"])
def test_an_image_outside_of_the_data_root_is_refused(tmp_path, name):
    (tmp_path / "data").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    row = {"image": name, "prefix": "<CAPTION>", "suffix": "a"}
    (tmp_path / "data" / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match="lies outside of"):
        Jsonl(tmp_path / "data" / "a.jsonl")[0]
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "data" / "a.jsonl").write_text(json.dumps(row | {"image": "link.png"}))
    with pytest.raises(DataError, match="lies outside of"):
        Jsonl(tmp_path / "data" / "a.jsonl")[0]


def test_a_batch_that_cannot_be_split_is_refused(rows):
    with pytest.raises(DataError, match="4 rows cannot be split over 3 hosts"):
        stream(rows, hosts=3)


def test_a_host_may_bring_a_single_row(rows):
    whole = stream(rows).batch(2)
    shares = [next(stream(rows, host=host, hosts=4).batches(2)) for host in range(4)]
    assert sum((share.ids for share in shares), ()) == whole.ids
