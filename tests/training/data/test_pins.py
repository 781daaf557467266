"""What a run remembers of its training rows, and what it says when they are others."""

import json

import pytest

from florence_jax.training.checkpointing.resume import changes, pin
from florence_jax.training.config import DataConfig
from florence_jax.training.data.sources import (
    CocoConfig,
    JsonlConfig,
    ParquetConfig,
    VqaConfig,
    open_data,
)
from train.shapes.source import ShapesConfig


def rows(path, suffixes):
    path.parent.mkdir(exist_ok=True, parents=True)
    row = {"image": "a.png", "prefix": "<CAPTION>"}
    path.write_text("".join(json.dumps(row | {"suffix": text}) + "\n" for text in suffixes))
    return path


def pinned(config):
    return pin(open_data(config.train, directory=config.directory))


def test_other_labels_and_fewer_rows_are_told_apart_from_the_same_rows(tmp_path):
    file = rows(tmp_path / "data" / "train" / "rows.jsonl", ["cat", "dog", "cow"])
    config = DataConfig(directory=str(tmp_path / "data"))
    before = pinned(config)
    assert before["rows"] == {"train/rows.jsonl": 3}
    assert changes(before, pinned(config)) == []
    # As many bytes as before.
    rows(file, ["cat", "fox", "cow"])
    (other, count) = changes(before, pinned(config))
    assert f"{file} has other content (sha256 " in other
    assert count == "there are 3 rows, as many as before"
    rows(file, ["cat", "fox"])
    assert changes(before, pinned(config))[1] == "train/rows.jsonl had 3 rows and has 2"


def test_every_source_of_a_mixture_is_pinned(tmp_path):
    first, second = (rows(tmp_path / f"{name}.jsonl", ["x"]) for name in "ab")
    coco = tmp_path / "c.json"
    image = {"id": 1, "file_name": "a.png", "width": 8, "height": 8}
    thing = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4]}
    content = {
        "images": [image],
        "annotations": [thing],
        "categories": [{"id": 1, "name": "cat"}],
    }
    coco.write_text(json.dumps(content))
    config = DataConfig(
        train=(
            JsonlConfig(path=str(first)),
            JsonlConfig(path=str(second)),
            CocoConfig(path=str(coco)),
            ShapesConfig(scenes=2),
        )
    )
    before = pinned(config)
    assert before["files"].keys() == {str(first), str(second), str(coco)}
    rows(second, ["y"])
    (phrase, _) = changes(before, pinned(config))
    assert str(second) in phrase


def test_files_of_a_directory_that_come_or_go_are_named(tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet as parquet

    columns = {"image": ["a.png"], "prefix": ["<CAPTION>"], "suffix": ["x"]}
    for name in ("0", "1"):
        parquet.write_table(pyarrow.table(columns), tmp_path / f"{name}.parquet")
    config = DataConfig(train=(ParquetConfig(path=str(tmp_path)),))
    before = pinned(config)
    (tmp_path / "1.parquet").rename(tmp_path / "2.parquet")
    assert changes(before, pinned(config)) == [
        f"{tmp_path}/1.parquet is no longer part of them",
        f"{tmp_path}/2.parquet is new",
        "there are 2 rows, as many as before",
    ]


def test_the_second_file_of_questions_is_pinned(tmp_path):
    config = VqaConfig(path="q.json", annotations="a.json")
    assert [name for name, _ in config.files()] == ["q.json", "a.json"]
