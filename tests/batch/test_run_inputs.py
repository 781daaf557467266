"""A run goes on with the inputs that it began with, or says by name what became of them."""

import json
import os
import tarfile
import threading

import pytest
from PIL import Image

from florence_jax.batch.blocks import ProcessShare, RunOptions
from florence_jax.batch.manifest import RunError
from florence_jax.batch.run import run_blocks
from florence_jax.batch.sources.open import open_source
from florence_jax.batch.verify import verify_output
from florence_jax.inference.requests import Query
from tests.batch.fakes import SumOfPixels, write_pictures

OD = [Query(prompt="<OD>")]


def run(*places, into, job=None, **options):
    run_options = RunOptions(**({"block_size": 3, "workers": 0} | options))
    source = open_source(places, OD)
    return run_blocks(source, job or SumOfPixels(), into, run_options, progress=False)


def ids_in(directory):
    files = sorted(directory.glob("block-*.jsonl"))
    return [json.loads(line)["id"] for file in files for line in file.read_text().splitlines()]


def blocks_in(directory):
    return {path.name: path.read_bytes() for path in directory.glob("block-*")}


@pytest.fixture
def folder(tmp_path):
    write_pictures(tmp_path / "pictures", 7)
    return tmp_path / "pictures"


def add(folder, *names):
    for number, name in enumerate(names):
        Image.new("RGB", (5, 5), (number, 9, 9)).save(folder / name)


def test_pictures_that_were_added_need_to_be_asked_for(folder, tmp_path):
    out = tmp_path / "out"
    run(folder, into=out)
    before = blocks_in(out)
    add(folder, "000a.png", "zzz.png")
    with pytest.raises(RunError, match=r"2 of the inputs are new .*000a\.png.*pass --extend"):
        run(folder, into=out)
    job = SumOfPixels()
    assert run(folder, into=out, job=job, extend=True).missing == 0
    assert sorted(job.seen) == [f"{folder}/000a.png", f"{folder}/zzz.png"]
    assert {name: blocks_in(out)[name] for name in before} == before
    assert ids_in(out) == [f"{folder}/00{n}.png" for n in range(7)] + job.seen
    assert verify_output(out).is_complete
    # From then on they belong to it, with and without the option; and it grows again.
    for options in ({}, {"extend": True}):
        assert run(folder, into=out, job=(job := SumOfPixels()), **options).rows == 0
        assert not job.seen
    add(folder, "0000.png")
    assert run(folder, into=out, extend=True).rows == 1
    assert ids_in(out)[-1] == f"{folder}/0000.png"
    assert verify_output(out).is_complete


def test_an_unfinished_run_grows_too(folder, tmp_path):
    out = tmp_path / "out"
    run(folder, into=out)
    for path in out.glob("block-00001-*"):
        path.unlink()
    add(folder, "000a.png")
    assert run(folder, into=out, extend=True).rows == 4
    assert verify_output(out).is_complete


def test_several_processes_extend_one_run(folder, tmp_path):
    out, failures = tmp_path / "out", []
    run(folder, into=out)
    add(folder, *(f"new-{n}.png" for n in range(9)))

    def work(index):
        try:
            run(folder, into=out, extend=True, share=ProcessShare(index, 3))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(ids_in(out)) == len(set(ids_in(out))) == 16
    assert verify_output(out).is_complete
    assert [path.name for path in out.glob("_added-*")] == ["_added-00001.json"]


@pytest.mark.parametrize("extend", [False, True])
def test_a_picture_that_is_gone_or_replaced_is_named(folder, tmp_path, extend):
    out = tmp_path / "out"
    run(folder, into=out)
    kept = (folder / "004.png").read_bytes()
    (folder / "004.png").unlink()
    with pytest.raises(RunError, match=r"1 inputs of the run .* are gone, such as .*004\.png"):
        run(folder, into=out, extend=extend)
    add(folder, "004.png")
    with pytest.raises(RunError, match=r"004\.png was replaced after .*block-00001-of-00003"):
        run(folder, into=out, extend=extend)
    assert kept != (folder / "004.png").read_bytes()
    # The way out that the message names.
    for path in out.glob("block-00001-*"):
        path.unlink()
    assert run(folder, into=out, extend=extend).rows == 3
    assert verify_output(out).is_complete
    assert run(folder, into=out).rows == 0


def test_other_rows_in_a_file_of_the_same_size_are_refused(folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"image": "pictures/000.png", "id": "a"}\n')
    run(rows, into=tmp_path / "out")
    times = rows.stat()
    rows.write_text('{"image": "pictures/001.png", "id": "a"}\n')
    os.utime(rows, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(RunError, match=r"rows\.jsonl has changed since .* put back what it was"):
        run(rows, into=tmp_path / "out", extend=True)
    # Other files of rows may come along.
    rows.write_text('{"image": "pictures/000.png", "id": "a"}\n')
    more = tmp_path / "more.jsonl"
    more.write_text('{"image": "pictures/002.png", "id": "b"}\n')
    assert run(rows, more, into=tmp_path / "out", extend=True).rows == 1
    assert ids_in(tmp_path / "out") == ["a", "b"]


def test_other_pictures_in_a_parquet_file_of_the_same_size_are_refused(folder, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    one, other = ((folder / f"00{n}.png").read_bytes() for n in range(2))
    other = other[: len(one)].ljust(len(one), b"\0")

    def write(content):
        table = pyarrow.table({"id": ["a"], "image": pyarrow.array([content], pyarrow.binary())})
        parquet.write_table(table, path, compression="none", write_statistics=False)
        os.utime(path, (1, 1))
        return path.stat().st_size

    size = write(one)
    run(path, into=tmp_path / "out")
    assert write(other) == size
    with pytest.raises(RunError, match=r"rows\.parquet has changed since"):
        run(path, into=tmp_path / "out")


def test_other_pictures_in_a_tar_of_the_same_headers_are_refused(folder, tmp_path):
    path = tmp_path / "rows.tar"

    def write(color):
        Image.new("RGB", (4, 4), color).save(tmp_path / "a.bmp")
        os.utime(tmp_path / "a.bmp", (1, 1))
        with tarfile.open(path, "w") as archive:
            archive.add(tmp_path / "a.bmp", "a.bmp")
        os.utime(path, (1, 1))

    write("red")
    run(path, into=tmp_path / "out")
    write("blue")
    with pytest.raises(RunError, match=r"rows\.tar has changed since"):
        run(path, into=tmp_path / "out")
