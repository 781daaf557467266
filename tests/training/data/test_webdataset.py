"""WebDataset's tars: at any place on this machine, and as streams behind URLs."""

import gc
import io
import json
import tarfile

import fsspec
import numpy as np
import pytest
from PIL import Image

from florence_jax.training.data import webdataset
from florence_jax.training.data.columns import Columns
from florence_jax.training.data.example import DataError
from florence_jax.training.data.sources import WebDatasetConfig, open_data
from florence_jax.training.data.webdataset import WebDataset, expand, read_samples, tars_at
from tests.training.data.test_registry import read
from tests.training.data.test_stream import ids, loader

CAPTIONS = Columns(task="<CAPTION>", suffix="txt")


def png(number):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20), (number, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def tar(members):
    """The bytes of a tar of (name, content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def samples(first, count):
    for number in range(first, first + count):
        yield f"./set/{number:04d}.png", png(number)
        yield f"./set/{number:04d}.txt", f"number {number}".encode()


@pytest.fixture
def shards(tmp_path):
    for number in range(3):
        path = tmp_path / f"train-{number:03d}.tar"
        path.write_bytes(tar(samples(4 * number, 4)))
    return tmp_path


@pytest.fixture
def bucket():
    files = fsspec.filesystem("memory")
    for number in range(3):
        with files.open(f"/bucket/train-{number}.tar", "wb") as stream:
            stream.write(tar(samples(4 * number, 4)))
    yield "memory://bucket/train-{0..2}.tar"
    files.rm("/bucket", recursive=True)


def url_source(bucket, **settings):
    settings = {"rows": 12, "shuffle_rows": 5, "columns": CAPTIONS} | settings
    ((_, source, _),) = WebDatasetConfig(path=bucket, **settings).open(3)
    return source


def test_samples_are_read_at_any_place(shards):
    source = WebDataset(tars_at(str(shards)), CAPTIONS, "shards")
    assert len(source) == 12
    for index in (11, 0, 5):
        prompt, answer, image = read(source, index)
        assert (prompt, answer) == ("What does the image describe?", f"number {index}")
        assert image[0, 0].tolist() == [index, 0, 0]
    assert source[5].id == f"{shards}/train-001.tar:./set/0005"


# The library leaves its tars open.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_samples_are_what_the_webdataset_library_reads(shards):
    library = pytest.importorskip("webdataset", reason="needs the package webdataset")
    tars = tars_at(str(shards / "train-{000..002}.tar"))
    source = WebDataset(tars, CAPTIONS, "shards")
    theirs = list(library.WebDataset(tars, shardshuffle=False))
    gc.collect()
    assert len(theirs) == len(source)
    for index, sample in enumerate(theirs):
        example = source[index]
        assert (example.image, example.labels) == (sample["png"], sample["txt"].decode())
        assert example.id.endswith(f":{sample['__key__']}")


def test_rows_and_objects_in_json(tmp_path):
    rows = [{"prefix": "<CAPTION>", "suffix": "a cat"}]
    objects = [{"objects": {"bbox": [[4, 2, 8, 4]], "category": ["cat"]}}]
    for name, (row,) in (("rows", rows), ("objects", objects)):
        members = [("a.jpg", png(7)), ("a.json", json.dumps(row).encode())]
        (tmp_path / f"{name}.tar").write_bytes(tar(members))
    source = WebDataset([str(tmp_path / "rows.tar")], Columns(), "rows")
    assert read(source)[1] == "a cat"
    columns = Columns(boxes="objects.bbox", labels="objects.category")
    source = WebDataset([str(tmp_path / "objects.tar")], columns, "objects")
    assert read(source)[:2] == (
        "Locate the objects with category name in the image.",
        "cat<loc_100><loc_100><loc_300><loc_300>",
    )


def test_the_ending_chooses_one_of_several_images(tmp_path):
    members = [("a.jpg", png(1)), ("a.seg.png", png(2)), ("a.txt", b"both")]
    (tmp_path / "a.tar").write_bytes(tar(members))
    chosen = Columns(task="<CAPTION>", suffix="txt", image="seg.png")
    assert WebDataset([str(tmp_path / "a.tar")], chosen, "a")[0].image == png(2)
    with pytest.raises(DataError, match=r"has 2 images, expected one, among a.jpg, a.seg.png"):
        WebDataset([str(tmp_path / "a.tar")], CAPTIONS, "a")


def test_damage_and_bad_samples_are_rows_that_fail(shards):
    content = bytearray((shards / "train-001.tar").read_bytes())
    content[2 * 512 : 3 * 512] = b"x" * 512  # a header
    (shards / "train-001.tar").write_bytes(content)
    lost = [("0099.txt", b"no image")]
    (shards / "train-002.tar").write_bytes(tar([*samples(8, 4), *lost]))
    source = WebDataset(tars_at(str(shards)), CAPTIONS, "shards")
    problems = []
    good = []
    for index in range(len(source)):
        try:
            good.append(source[index].labels)
        except DataError as error:
            problems.append(str(error))
    assert len(good) + len(problems) == len(source)
    assert "number 0" in good
    assert "number 11" in good
    assert any("train-001.tar: bytes 1024 to" in problem for problem in problems)
    assert any("0099 has 0 images, expected one" in problem for problem in problems)
    (fault,) = source.faults
    assert "samples may be lost there" in fault.text


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("a-{8..11}.tar", ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]),
        ("{x,yy}/{0..1}.tar", ["x/0.tar", "x/1.tar", "yy/0.tar", "yy/1.tar"]),
    ],
)
def test_patterns_expand_as_in_a_shell(pattern, names):
    assert expand(pattern) == names
    try:
        from braceexpand import braceexpand
    except ImportError:
        return  # the names above are what it gives
    assert list(braceexpand(pattern)) == names


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a-{3..1}.tar", "the range 3..1 runs backwards"),
        ("a-{0..1}.tar", r"2 of 2 tars of .* are not there, such as .*a-0.tar"),
        ("empty", "holds no .tar"),
    ],
)
def test_tars_that_are_not_there_are_named(tmp_path, path, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        tars_at(str(tmp_path / path))


def test_columns_that_no_sample_has_are_refused_at_once(shards):
    with pytest.raises(DataError, match=r"set/0000 has no column prefix, but txt"):
        list(WebDatasetConfig(path=str(shards)).open(0))


def test_a_stream_has_the_rows_of_the_tars(bucket):
    source = url_source(bucket, shuffle_rows=4)
    seen = {source[index].labels for index in range(12)}
    assert seen == {f"number {number}" for number in range(12)}
    plain = url_source(bucket, shuffle_rows=1)
    assert [plain[index].labels for index in range(13)] == [
        f"number {number % 12}" for number in range(13)
    ]
    assert plain[3].image == png(3)


def test_tars_are_shuffled_anew_for_each_pass(bucket):
    source = url_source(bucket, shuffle_rows=2)
    orders = {
        tuple(source[12 * number + index].id.rpartition("train-")[2][0] for index in range(12))
        for number in range(6)
    }
    assert len(orders) > 1
    again = url_source(bucket, shuffle_rows=2)
    assert ids(again, range(40, 50)) == ids(source, range(40, 50))


def test_a_stream_resumes_where_it_was(bucket):
    whole = [loader(url_source(bucket)).batch(step) for step in range(9)]
    batches = loader(url_source(bucket)).batches(5, threads=2)
    for step in range(5, 9):
        batch = next(batches)
        assert batch.ids == whole[step].ids
        assert batch.problems == ()
        np.testing.assert_array_equal(batch.labels, whole[step].labels)


@pytest.mark.parametrize("failures", [1, 3, 4])
def test_a_connection_that_ends_is_opened_again(bucket, monkeypatch, failures):
    left = [failures]

    def cut(tar):
        for number, sample in enumerate(read_samples(tar)):
            if "train-1" in tar and number == 2 and left[0]:
                left[0] -= 1
                raise OSError("connection reset")
            yield sample

    monkeypatch.setattr(webdataset, "read_samples", cut)
    monkeypatch.setattr(webdataset, "_WAITS", (0.0, 0.0, 0.0))
    source = url_source(bucket, shuffle_rows=1)
    if failures < 4:
        assert [source[index].labels for index in range(12)] == [f"number {n}" for n in range(12)]
        return
    assert source[5].labels == "number 5"
    with pytest.raises(DataError, match=r"train-1\.tar cannot be read behind its sample 2 .*reset"):
        source[6]
    # Nothing is lost: it is read once the storage is there again.
    assert source[6].labels == "number 6"


def test_a_stream_needs_its_number_of_rows(bucket):
    with pytest.raises(DataError, match="do not say how many rows they have: set rows"):
        url_source(bucket, rows=None)


def test_a_missing_bucket_is_named(monkeypatch):
    monkeypatch.setattr(webdataset, "_WAITS", ())
    source = url_source("memory://absent/a.tar")
    with pytest.raises(
        DataError, match=r"memory://absent/a\.tar cannot be read .*FileNotFoundError"
    ):
        source[0]


def test_tars_in_a_directory_of_splits(shards):
    (shards / "train").mkdir()
    (shards / "valid").mkdir()
    row = json.dumps({"prefix": "<CAPTION>", "suffix": "a cat"}).encode()
    for split in ("train", "valid"):
        (shards / split / "0.tar").write_bytes(tar([("a.png", png(1)), ("a.json", row)]))
    for path in shards.glob("*.tar"):
        path.unlink()
    opened = open_data(directory=str(shards))
    assert [len(source) for _, source, _ in opened.train] == [1]
    assert len(opened.valid) == 1
    names = [name for config in opened.configs for name, _ in config.files()]
    assert names == [str(shards / "train" / "0.tar")]
