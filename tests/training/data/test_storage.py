"""Training data behind URLs: what files give, and nothing from outside of the data's root."""

import io
import json
import pickle

import numpy as np
import pytest
from etils.epath import backend
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from florence_jax.annotation.schema import write_annotations
from florence_jax.processing import demo_tokenizer
from florence_jax.training.config import DataConfig, ModelConfig, TrainConfig
from florence_jax.training.data.augment import AugmentConfig
from florence_jax.training.data.example import DataError
from florence_jax.training.data.loader import DataLoader
from florence_jax.training.data.preprocess import ExampleRef, Preprocessor
from florence_jax.training.data.sources import (
    ArrayRecordConfig,
    JsonlConfig,
    SourceConfig,
    open_data,
)
from florence_jax.training.data.storage import as_path, resolve_inside
from florence_jax.training.data.tabular import Jsonl
from tests.annotation.written import EXAMPLE
from tests.training.data.objects import Objects
from train.shapes.source import ShapesConfig

ROW = Preprocessor(tokenizer=demo_tokenizer(), image_size=(16, 16), augmentation=AugmentConfig())
SETTINGS = {
    "jsonl": {"path": "train/rows.jsonl"},
    "parquet": {"path": "tables"},
    "coco": {"path": "boxes.json", "image_root": "train", "tasks": ("<OD>", "<REGION_PROPOSAL>")},
    "vqa": {"path": "questions.json", "annotations": "answers.json", "image_root": "train"},
    "docvqa": {"path": "documents.json"},
    "annotations": {"path": "annotated", "image_root": "train"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of every kind, as files."""
    import pyarrow
    import pyarrow.parquet as parquet

    root = tmp_path_factory.mktemp("data")
    for split in ("train", "valid", "annotated", "tables"):
        (root / split).mkdir()
    lines = []
    for number in range(4):
        picture = Image.new("RGB", (40, 20), (0, 0, 60 * number))
        for split in ("train", "valid"):
            picture.save(root / split / f"{number}.png")
        lines.append({"image": f"{number}.png", "prefix": "<CAPTION>", "suffix": f"no {number}"})
    for split in ("train", "valid"):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (root / split / "rows.jsonl").write_text(text)
    for half in range(2):
        part = [
            row | {"image": (root / "train" / row["image"]).read_bytes()}
            for row in lines[half * 2 : half * 2 + 2]
        ]
        table = pyarrow.Table.from_pylist(part)
        parquet.write_table(table, root / "tables" / f"{half}.parquet", row_group_size=1)
    boxes = {
        "images": [{"id": 1, "file_name": "1.png", "width": 40, "height": 20}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 3, "bbox": [4, 2, 8, 4]}],
    }
    asked = {"question_id": 5, "question": "What colour?", "image": "2.png"}
    answers = {"annotations": [{"question_id": 5, "answers": [{"answer": "blue"}]}]}
    document = {"question": "Total?", "image": "train/3.png", "answers": ["12"]}
    for name, content in (
        ("boxes", boxes),
        ("questions", {"questions": [asked]}),
        ("answers", answers),
        ("documents", {"data": [document]}),
    ):
        (root / f"{name}.json").write_text(json.dumps(content))
    Image.new("RGB", (EXAMPLE.width, EXAMPLE.height), (9, 90, 0)).save(root / "train" / "a.png")
    annotation = EXAMPLE.__class__(**vars(EXAMPLE) | {"image": "a.png"})
    write_annotations([annotation], root / "annotated" / "block-000000.jsonl")
    return root


@pytest.fixture
def objects(monkeypatch):
    objects = Objects()
    monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: objects)
    return objects


@pytest.fixture
def bucket(folder, objects, tmp_path):
    """The same behind a URL of its own, because copies of a URL are kept for a process."""
    name = f"bucket/{tmp_path.name}"
    for file in folder.rglob("*.*"):
        objects.contents[f"{name}/{file.relative_to(folder).as_posix()}"] = file.read_bytes()
    return f"gs://{name}"


def settings(kind, root):
    """The source of a kind, its paths below `root`."""
    named = {
        name: f"{root}/{value}" if isinstance(value, str) else value
        for name, value in SETTINGS[kind].items()
    }
    return SourceConfig.of_kind(kind)(**named)


def all_rows(sources):
    return [
        ROW(ExampleRef(name, source, index), np.random.default_rng(0))
        for name, source, _ in sources
        for index in range(len(source))
    ]


def assert_same(actual, expected):
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected, strict=True):
        assert one.problem is other.problem is None
        assert (one.prompt, one.labels) == (other.prompt, other.labels)
        np.testing.assert_array_equal(one.image, other.image)


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_url_gives_the_rows_of_the_files(kind, folder, bucket):
    expected, actual = (open_data(train=(settings(kind, root),)).train for root in (folder, bucket))
    assert [name for name, _, _ in actual] == [
        name.replace(folder.name, bucket.rpartition("/")[2]) for name, _, _ in expected
    ]
    # As worker processes get them.
    assert_same(all_rows(pickle.loads(pickle.dumps(actual))), all_rows(expected))


def test_a_directory_of_train_and_valid_may_be_a_url(folder, bucket):
    expected, actual = (open_data(directory=str(root)) for root in (folder, bucket))
    assert_same(all_rows(actual.train), all_rows(expected.train))
    valid = [[(name, one, 1.0) for name, one in data.valid.items()] for data in (actual, expected)]
    assert_same(*map(all_rows, valid))


def test_rows_are_fetched_once_and_pictures_when_they_are_drawn(bucket, objects):
    source = Jsonl(f"{bucket}/train/rows.jsonl")
    assert set(objects.fetched.values()) == {1}
    assert len(objects.fetched) == 1
    stream = DataLoader(sources=(("rows", source, 1.0),), preprocessor=ROW, batch_size=2)
    batches = stream.batches(0, threads=2)
    assert [next(batches).problems for _ in range(2)] == [(), ()]
    key = f"{bucket.removeprefix('gs://')}/train/rows.jsonl"
    assert objects.fetched[key] == 1
    assert sum(name.endswith(".png") for name in objects.fetched) == 4


def test_a_picture_that_cannot_be_fetched_is_one_row_without_weight(bucket, objects):
    keys = [f"{bucket.removeprefix('gs://')}/train/{number}.png" for number in range(4)]
    del objects.contents[keys[1]]
    objects.refuses[keys[2]] = PermissionError("no access")
    objects.contents[keys[3]] = b"half a picture"
    rows = all_rows([("rows", Jsonl(f"{bucket}/train/rows.jsonl"), 1.0)])
    assert [row.problem is None for row in rows] == [True, False, False, False]
    assert f"'gs://{keys[1]}' cannot be read (FileNotFoundError" in rows[1].problem
    assert f"'gs://{keys[2]}' cannot be read (PermissionError: no access)" in rows[2].problem
    assert "ImageError" in rows[3].problem


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "a/../../secret.png",
        "..",
        ".",
        "",
        "/secret.png",
        "/gs/bucket/data/a.png",
        "//bucket/data/a.png",
        "gs://other/a.png",
        "gs://bucket/database/a.png",
        "gs://bucket/data/../a.png",
        "gs://bucket/data",
        "s3://bucket/data/a.png",
        "file:///etc/passwd",
    ],
)
def test_a_name_that_leaves_the_root_is_refused(name):
    with pytest.raises(DataError, match=r"row 3: the image .* lies outside of gs://bucket/data"):
        resolve_inside(as_path("gs://bucket/data"), name, "row 3")


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("a.png", "gs://bucket/data/a.png"),
        ("sub/./b/../a b#1.png", "gs://bucket/data/sub/a b#1.png"),
        ("gs://bucket/data/a.png", "gs://bucket/data/a.png"),
    ],
)
def test_a_name_below_the_root_is_its_object(name, url):
    assert str(resolve_inside(as_path("gs://bucket/data"), name, "row 3")) == url


_PIECES = st.sampled_from(["..", ".", "", "/", "a", "data", "bucket", "gs:", "gs", "s3://", "\\"])


@given(name=st.lists(_PIECES).map("/".join) | st.text(max_size=20))
def test_no_name_leads_out_of_the_root(name):
    try:
        url = str(resolve_inside(as_path("gs://bucket/data"), name, "row"))
    except DataError:
        return
    assert url.startswith("gs://bucket/data/")
    assert ".." not in url.removeprefix("gs://").split("/")


def test_files_do_not_name_pictures_behind_urls(tmp_path):
    with pytest.raises(DataError, match="lies outside of"):
        resolve_inside(tmp_path, "gs://bucket/a.png", "row 3")


def test_a_row_that_names_a_secret_is_not_given_it(bucket, objects):
    objects.contents["bucket/secret.png"] = picture()
    objects.contents[f"{bucket.removeprefix('gs://')}/train/rows.jsonl"] = json.dumps(
        {"image": "../../secret.png", "prefix": "<CAPTION>", "suffix": "x"}
    ).encode()
    (row,) = all_rows([("rows", Jsonl(f"{bucket}/train/rows.jsonl"), 1.0)])
    assert "lies outside of" in row.problem
    assert "bucket/secret.png" not in objects.fetched


def picture():
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            JsonlConfig(path="gs://bucket/absent.jsonl"),
            "there is no .* gs://bucket/absent",
        ),
        (JsonlConfig(path="http://host/a.jsonl"), "from files and from gs://, s3://"),
        (ArrayRecordConfig(path="gs://bucket/a.array_record"), "file systems alone"),
    ],
)
def test_what_cannot_be_read_is_named(objects, source, message):
    objects.contents["bucket/a.array_record"] = b""
    with pytest.raises(DataError, match=message):
        open_data((source,))


def test_a_client_that_is_missing_is_named_with_its_package(monkeypatch):
    def missing(path):
        raise ImportError("no client")

    monkeypatch.setattr(backend.fsspec_backend, "fs", missing)
    with pytest.raises(DataError, match=r"jsonl data: 'gs://bucket/a.jsonl' .*pip install gcsfs"):
        open_data((JsonlConfig(path="gs://bucket/a.jsonl"),))


def test_a_run_and_its_features_are_on_file_systems():
    data = DataConfig(train=(ShapesConfig(),))
    model = ModelConfig(architecture="tiny", processor="bytes")
    with pytest.raises(
        ValueError, match=r"directory=gs://bucket/run is a URL.*train/launch/README"
    ):
        TrainConfig(directory="gs://bucket/run", steps=1, model=model, data=data)
    with pytest.raises(ValueError, match=r"data.cached_features=s3://bucket/f is a URL"):
        DataConfig(train=data.train, cached_features="s3://bucket/f")
