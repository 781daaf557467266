"""Data sets of Hugging Face's `datasets`, as tables and as streams, against the library's own."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from florence_jax.processing import load_image
from florence_jax.training.config_loader import from_tree
from florence_jax.training.data.columns import Columns, row_of_columns
from florence_jax.training.data.example import DataError
from florence_jax.training.data.source_config import SourceConfig
from florence_jax.training.data.sources import HuggingFaceConfig, open_data
from tests.training.data.test_loader import assert_same
from tests.training.data.test_registry import read
from tests.training.data.test_stream import ids, loader

NAMES = ("cat", "dog", "bird")
OBJECTS = Columns(boxes="objects.bbox", labels="objects.category")
SIZE = (40, 20)


def png(number):
    buffer = io.BytesIO()
    Image.new("RGB", SIZE, (number, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def datasets():
    return pytest.importorskip("datasets", reason="needs the package datasets (extra datasets)")


def table(datasets, count=11, listed=False):
    """Objects as columns of lists, or as a list of objects."""
    box = datasets.List(datasets.Value("float32"), length=4)
    label = datasets.ClassLabel(names=list(NAMES))
    fields = {"bbox": box, "category": label}
    if listed:
        objects = datasets.List(fields)
    else:
        objects = {name: datasets.List(feature) for name, feature in fields.items()}
    features = {"image": datasets.Image(), "objects": objects, "text": datasets.Value("string")}
    rows = []
    for number in range(count):
        boxes = [[4.0, 2.0, 8.0 + number, 4.0], [0.0, 0.0, 40.0, 20.0]][: number % 3]
        labels = [number % 3, 1][: number % 3]
        found = {"bbox": boxes, "category": labels}
        if listed:
            found = [{"bbox": b, "category": c} for b, c in zip(boxes, labels, strict=True)]
        image = {"bytes": png(number), "path": None}
        rows.append({"image": image, "objects": found, "text": f"number {number}"})
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


@pytest.fixture(params=["columns", "objects"])
def saved(datasets, tmp_path, request):
    """(folder, the library's table)."""
    made = table(datasets, listed=request.param == "objects")
    made.save_to_disk(tmp_path / "saved")
    return tmp_path / "saved", made


def opened(path, seed=0, **settings):
    ((_, source, _),) = HuggingFaceConfig(path=str(path), **settings).open(seed)
    return source


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_are_the_librarys_own(saved, streaming):
    path, theirs = saved
    source = opened(
        path, columns=OBJECTS, streaming=streaming, rows=11, shuffle_rows=1, order="as_annotated"
    )
    assert len(source) == len(theirs)
    for index, row in enumerate(theirs):
        example = source[index]
        np.testing.assert_array_equal(load_image(example.image), np.asarray(row["image"]))
        objects = row["objects"]
        if isinstance(objects, list):
            objects = {name: [one[name] for one in objects] for name in ("bbox", "category")}
        corners = [[x, y, x + w, y + h] for x, y, w, h in objects["bbox"]]
        assert example.labels["bboxes"] == corners
        assert example.labels["labels"] == [NAMES[number] for number in objects["category"]]
        assert (example.task, example.prompt) == ("<OD>", "")


def test_captions_by_a_column_of_any_name(saved):
    path, theirs = saved
    source = opened(path, columns=Columns(task="<CAPTION>", suffix="text"))
    assert read(source, 4)[:2] == ("What does the image describe?", theirs[4]["text"])


def test_splits_of_a_saved_dictionary_are_those_of_a_directory(datasets, tmp_path):
    whole = datasets.DatasetDict({"train": table(datasets), "validation": table(datasets, 3)})
    whole = whole.map(lambda row: {"prefix": "<CAPTION>", "suffix": row["text"]})
    whole.save_to_disk(tmp_path / "saved")
    found = open_data(directory=str(tmp_path / "saved"))
    assert [len(source) for _, source, _ in found.train] == [11]
    assert [len(source) for source in found.valid.values()] == [3]
    with pytest.raises(DataError, match="has no split 'test', it has train, validation"):
        opened(tmp_path / "saved", split="test", columns=OBJECTS)


def test_folders_of_files_that_the_library_reads(datasets, tmp_path):
    table(datasets).to_parquet(tmp_path / "data" / "train-0.parquet")
    for streaming in (False, True):
        columns = Columns(task="<CAPTION>", suffix="text")
        source = opened(
            tmp_path / "data", columns=columns, streaming=streaming, rows=11, shuffle_rows=1
        )
        assert [source[index].labels for index in range(11)] == [f"number {n}" for n in range(11)]
        assert source[7].image == png(7)


def test_images_in_files_beside_the_rows(datasets, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    lines = []
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(number))
        lines.append(f'{{"file_name": "{number}.png", "text": "number {number}"}}\n')
    (folder / "metadata.jsonl").write_text("".join(lines))
    source = opened(folder, columns=Columns(task="<CAPTION>", suffix="text"))
    found = {source[index].labels: source[index].image for index in range(3)}
    assert found == {f"number {number}": png(number) for number in range(3)}


@pytest.mark.parametrize(
    ("streaming", "ahead"),
    [(False, {"threads": 4}), (True, {"threads": 4}), (True, {"threads": 1, "workers": 2})],
)
def test_batches_are_a_function_of_seed_and_step(datasets, tmp_path, streaming, ahead):
    table(datasets).save_to_disk(tmp_path)

    def source():
        return opened(
            tmp_path, seed=3, columns=OBJECTS, streaming=streaming, rows=11, shuffle_rows=4
        )

    whole = [loader(source()).batch(step) for step in range(7)]
    assert all(batch.problems == () for batch in whole)
    resumed = loader(source()).batches(3, **ahead)
    for step in range(3, 7):
        assert_same(next(resumed), whole[step])
    halves = [loader(source(), host=host, hosts=2).batch(5) for host in range(2)]
    assert halves[0].ids + halves[1].ids == whole[5].ids


def test_files_of_a_stream_are_shuffled_for_each_pass(datasets, tmp_path):
    for number in range(4):
        part = table(datasets).select(range(2 * number, 2 * number + 2))
        part.to_parquet(tmp_path / "data" / f"train-{number}.parquet")
    columns = Columns(task="<CAPTION>", suffix="text")
    settings = {"columns": columns, "streaming": True, "rows": 8, "shuffle_rows": 2}
    source = opened(tmp_path / "data", **settings)
    passes = [tuple(source[8 * number + index].labels for index in range(8)) for number in range(5)]
    assert all(sorted(one) == [f"number {n}" for n in range(8)] for one in passes)
    assert len(set(passes)) > 1
    assert ids(opened(tmp_path / "data", **settings), range(30)) == ids(source, range(30))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(), "lacks the columns prefix, suffix; it has image, objects.bbox, objects.categ"),
        (
            Columns(boxes="objects.boxes", labels="objects.category"),
            r"lacks the columns objects.boxes \(did you mean objects.bbox\?\); it has image",
        ),
        (Columns(image="picture", task="<CAPTION>", suffix="text"), "lacks the columns picture"),
    ],
)
def test_a_wrong_column_is_named_with_those_that_there_are(saved, columns, message):
    for streaming in (False, True):
        with pytest.raises(DataError, match=message):
            opened(saved[0], columns=columns, streaming=streaming, rows=11)


def test_what_cannot_be_loaded_is_named(datasets, tmp_path):
    with pytest.raises(DataError, match=r"'.*absent' cannot be loaded .*: check its name"):
        opened(tmp_path / "absent", columns=OBJECTS)
    table(datasets).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="does not say how many rows it has: set rows"):
        opened(tmp_path / "saved", columns=OBJECTS, streaming=True)


def test_rows_of_a_hub_may_not_name_files_of_this_machine(datasets, tmp_path):
    from florence_jax.training.data.huggingface import HuggingFaceTable

    (tmp_path / "secret.png").write_bytes(png(1))
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    row = {"image": {"bytes": None, "path": str(tmp_path / "secret.png")}, "text": "a"}
    made = datasets.Dataset.from_list([row], features=features)
    columns = Columns(task="<CAPTION>", suffix="text")
    with pytest.raises(DataError, match=r"names the file '.*secret.png', and a data set of the Hu"):
        HuggingFaceTable(made, columns, "org/name")[0]
    assert HuggingFaceTable(made, columns, "own", local=True)[0].image == png(1)


def test_without_the_library_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r'pip install "florence-jax\[datasets\]"'):
        opened("org/name", columns=OBJECTS)


def test_settings_in_json():
    tree = {
        "kind": "huggingface",
        "path": "org/name",
        "columns": {"boxes": "objects.bbox", "labels": "objects.category", "box_format": "xyxy"},
        "streaming": True,
        "rows": 7,
    }
    config = from_tree(SourceConfig, tree, partial=True)
    assert config.columns.box_format == "xyxy"
    assert (config.streaming, config.rows, config.split) == (True, 7, "train")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"boxes": "a"}, "columns.boxes and columns.labels go together"),
        ({"boxes": "a", "labels": "b", "task": "<CAPTION>"}, "answer <OD> or <DENSE_REGION_CAPT"),
        ({"task": "caption"}, "columns.task must be a task such as <CAPTION>"),
    ],
)
def test_columns_that_do_not_go_together(settings, message):
    with pytest.raises(ValueError, match=message):
        Columns(**settings)


@pytest.mark.parametrize(
    ("form", "box"),
    [
        ("xywh", [4, 2, 8, 4]),
        ("xyxy", [4, 2, 12, 6]),
        ("cxcywh", [8, 4, 8, 4]),
        ("xywh_shares", [0.1, 0.1, 0.2, 0.2]),
        ("xyxy_shares", [0.1, 0.1, 0.3, 0.3]),
        ("cxcywh_shares", [0.2, 0.2, 0.2, 0.2]),
    ],
)
def test_formats_of_boxes(form, box):
    columns = Columns(boxes="bbox", labels="name", box_format=form)
    example = row_of_columns({"bbox": [box], "name": ["cat"]}, columns, "row", png(0))
    np.testing.assert_allclose(example.labels["bboxes"], [[4, 2, 12, 6]])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"bbox": [[4, 2, 0, 4]], "name": ["cat"]},
            "read as xywh, have a width or height of 0: mend",
        ),
        ({"bbox": [[50, 2, 8, 4]], "name": ["cat"]}, "read as xywh, lie outside of their images"),
        ({"bbox": [[4, 2, 8]], "name": ["cat"]}, "expected four finite numbers"),
        ({"bbox": [[4, 2, 8, 4]], "name": []}, "has 1 bbox and 0 name: expected one label"),
        ({"bbox": [[4, 2, 8, 4]], "name": [3]}, "is the number 3, and there are names of 0 cla"),
        ({"bbox": 3, "name": []}, "the column bbox must hold a list, got 3"),
        ({"name": []}, "row has no column bbox, but name"),
    ],
)
def test_a_row_that_does_not_fit_is_named(row, message):
    with pytest.raises(DataError, match=message):
        row_of_columns(row, Columns(boxes="bbox", labels="name"), "row", png(0))
