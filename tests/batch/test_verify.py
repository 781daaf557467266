"""What has happened to an output directory is found, and named."""

import json
import tarfile

import pytest

from florence_jax.batch.blocks import RunOptions, commit_block, digest_path, encode_rows, read_rows
from florence_jax.batch.job import Item, ListSource
from florence_jax.batch.manifest import RunError
from florence_jax.batch.run import run_blocks
from florence_jax.batch.sources.open import open_source
from florence_jax.batch.verify import verify_output
from florence_jax.inference.requests import Query
from tests.batch.fakes import SumOfPixels, items_of, write_pictures


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return ListSource(items_of(write_pictures(tmp_path_factory.mktemp("pictures"), 7, broken=(2,))))


@pytest.fixture(params=["jsonl", "parquet"])
def output(request, source, tmp_path):
    run_blocks(
        source,
        SumOfPixels(),
        tmp_path,
        RunOptions(block_size=3, row_format=request.param, workers=0),
        progress=False,
    )
    return tmp_path


def block(directory, number):
    (path,) = directory.glob(f"block-{number:05}-of-*[lt]")
    return path


def test_a_complete_run(output):
    report = verify_output(output)
    assert report.is_complete
    assert (report.rows, report.errors) == (7, 1)
    assert "complete" in report.describe()


def test_both_formats_hold_the_same(source, tmp_path):
    rows = {}
    for kind in ("jsonl", "parquet"):
        run_blocks(
            source,
            SumOfPixels(),
            tmp_path / kind,
            RunOptions(block_size=10, row_format=kind, workers=0),
            progress=False,
        )
        rows[kind] = list(read_rows(block(tmp_path / kind, 0)))
    assert rows["jsonl"] == rows["parquet"]
    assert len(rows["jsonl"]) == 7


def test_rows_survive_either_format(tmp_path):
    rows = [
        {"id": "a", "image": "a.png", "width": 3, "height": 4, "truth": {"x": [1, 2.5]},
         "answers": [{"prompt": "<OD>", "result": {"<OD>": {"bboxes": [[0.1, 2, 3, 4]]}}}]},
        {"id": "ü\n", "error": "no"},
    ]  # fmt: skip
    for kind in ("jsonl", "parquet"):
        path = tmp_path / f"block.{kind}"
        path.write_bytes(encode_rows(rows, kind))
        assert list(read_rows(path)) == rows


def test_flipped_bytes(output):
    path = block(output, 1)
    for place in (4, path.stat().st_size // 2, path.stat().st_size - 3):
        content = path.read_bytes()
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        report = verify_output(output)
        assert not report.is_complete
        assert f"{path.name} is damaged" in report.problems[0]
        assert "remove the files that are wrong" in report.describe()
        path.write_bytes(content)
    assert verify_output(output).is_complete


def test_a_missing_block_and_a_missing_digest(output):
    block(output, 0).unlink()
    report = verify_output(output)
    assert report.missing == [block(output, 1).name.replace("00001", "00000", 1)]
    assert not report.problems
    digest = digest_path(block(output, 2))
    digest.unlink()
    assert f"{digest.name} is missing" in verify_output(output).problems[0]


def replace(path, rows):
    """Other rows, under a digest of their own."""
    path.unlink()
    digest_path(path).unlink()
    commit_block(path, encode_rows(rows, path.suffix[1:]))


def test_rows_lost_doubled_and_exchanged(output):
    path = block(output, 1)
    rows = list(read_rows(path))
    for others, problem in (
        (rows[:2], "has 2 rows, not 3"),
        ([*rows, rows[0]], "has 4 rows, not 3"),
        ([rows[0], rows[0], rows[2]], "ids are not those"),
        ([rows[1], rows[0], rows[2]], "ids are not those"),
        ([rows[0] | {"id": "other"}, *rows[1:]], "ids are not those"),
    ):
        replace(path, others)
        report = verify_output(output)
        assert any(problem in one for one in report.problems), report
    replace(path, rows)
    assert verify_output(output).is_complete
    block(output, 0).unlink()
    replace(path, [rows[0], rows[0], rows[2]])
    assert "an id appears twice" in verify_output(output).problems


def test_blocks_of_another_run(output):
    path = output / "block-00000-of-00002.jsonl"
    path.write_text("{}\n")
    assert f"{path.name} is of another run" in verify_output(output).problems


def test_directories_without_a_run(tmp_path):
    with pytest.raises(RunError, match=r"holds no run\.json"):
        verify_output(tmp_path)
    for content, message in (
        ("{", "is damaged"),
        ("{}", "is not the manifest"),
        (json.dumps({"format": "florence-jax run", "version": 99}), "of version 99"),
    ):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(RunError, match=message):
            verify_output(tmp_path)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_names_that_are_no_utf8_are_written_and_verified(tmp_path, kind):
    (path,) = write_pictures(tmp_path, 1)
    names = ["caf\udce9.png", "caf\udce8.png"]
    items = [Item(id=name, image=str(path), extra={"note": name}) for name in names]
    out = tmp_path / "out"
    run_blocks(
        ListSource(items),
        SumOfPixels(),
        out,
        RunOptions(row_format=kind, workers=0),
        progress=False,
    )
    rows = list(read_rows(block(out, 0)))
    assert [row["id"] for row in rows] == names
    assert [row["note"] for row in rows] == names
    assert verify_output(out).is_complete


def test_a_run_over_a_damaged_tar_is_not_complete(tmp_path):
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for picture in write_pictures(tmp_path / "pictures", 3):
            archive.add(picture, picture.name)
    out = tmp_path / "out"
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        start = archive.getmember("001.png").offset
    content[start + 5] ^= 1
    path.write_bytes(content)
    source = open_source([path], [Query(prompt="<OD>")])
    run_blocks(source, SumOfPixels(), out, RunOptions(workers=0), progress=False)
    rows = list(read_rows(block(out, 0)))
    assert [row["id"].removeprefix(f"{path}/") for row in rows] == [
        "000", f"bytes {start} to {start + 1024}", "002"
    ]  # fmt: skip
    assert f"{path}/bytes {start} to" in rows[1]["error"]
    report = verify_output(out)
    assert not report.is_complete
    assert report.lost == [f"shard.tar, bytes {start} to {start + 1024}"]
    assert "not complete: these inputs are damaged" in report.describe()
