"""Whatever fails for one input is that input's row, with the kind of failure in it."""

import dataclasses
import json
import sys

import pytest

from florence_jax.batch import job as batch_job
from florence_jax.batch.blocks import RunOptions, encode_block
from florence_jax.batch.exports import DrawAnswers
from florence_jax.batch.job import Item, ListSource
from florence_jax.batch.reader_pool import WorkerPool
from florence_jax.batch.run import run_blocks
from florence_jax.batch.verify import verify_output
from tests.batch.fakes import SumOfPixels, items_of, write_pictures

FAILURES = {
    "001.png": MemoryError(),
    "002.png": OverflowError("cannot convert"),
    "003.png": RecursionError("maximum recursion depth exceeded"),
    "004.png": UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates not allowed"),
    "005.png": KeyError("mode"),
}


def rows_in(directory):
    (file,) = directory.glob("block-*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def run(source, directory):
    return run_blocks(source, SumOfPixels(), directory, RunOptions(workers=0), progress=False)


def stumbling(source, size, resample):
    """`resized_pixels` of a decoder that fails in as many ways as there are."""
    name = source.rsplit("/", 1)[-1]
    if name in FAILURES:
        raise FAILURES[name]
    return RESIZED(source, size, resample)


RESIZED = batch_job.resized_pixels


def test_a_picture_that_cannot_be_read_is_a_row(tmp_path, monkeypatch):
    source = ListSource(items_of(write_pictures(tmp_path / "pictures", 7)))
    monkeypatch.setattr(batch_job, "resized_pixels", stumbling)
    summary = run(source, tmp_path / "out")
    assert (summary.rows, summary.errors, summary.missing) == (7, 5, 0)
    errors = [row.get("error") for row in rows_in(tmp_path / "out")]
    assert errors[0] is errors[6] is None
    for error, kind in zip(errors[1:6], FAILURES.values(), strict=True):
        if not isinstance(kind, ValueError):
            assert type(kind).__name__ in error
    assert verify_output(tmp_path / "out").is_complete


def test_no_workers_is_nobodys_fault(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("no worker starts")

    source = ListSource(items_of(write_pictures(tmp_path / "pictures", 2)))
    monkeypatch.setattr(batch_job, "resized_pixels", refuse)
    with pytest.raises(RuntimeError, match="no worker starts"):
        run(source, tmp_path / "out")


def test_an_input_that_its_source_cannot_read_is_a_row(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Torn(ListSource):
        def read(self, start, stop):
            for item in self.items[start:stop]:
                if item.id in ("001.png", "002.png"):
                    raise OSError(f"page of {item.id} is damaged")
                yield item

    source = Torn(items_of(write_pictures(tmp_path / "pictures", 4)))
    assert run(source, tmp_path / "out").errors == 2
    rows = rows_in(tmp_path / "out")
    assert [row["id"] for row in rows] == [f"00{n}.png" for n in range(4)]
    assert rows[1]["error"] == "001.png cannot be read: page of 001.png is damaged"
    assert verify_output(tmp_path / "out").is_complete


def test_a_row_that_cannot_be_encoded_is_an_error():
    deep = 0
    for _ in range(sys.getrecursionlimit()):
        deep = [deep]
    rows = [{"id": "a", "sum": 1}, {"id": "b", "deep": deep}]
    lines = encode_block(rows, "jsonl").decode().splitlines()
    assert json.loads(lines[0]) == {"id": "a", "sum": 1}
    assert json.loads(lines[1])["error"].startswith("its row cannot be written: ")
    assert "error" in rows[1]


def test_an_answer_that_cannot_be_drawn_is_kept_and_says_so(tmp_path, capsys):
    (picture,) = write_pictures(tmp_path / "pictures", 1)
    items = [Item(id="a" * 4000 + "名" * 60, image=str(picture)), Item(id="b", image="gone.png")]
    rows = [
        {"id": item.id, "answers": [{"prompt": "<名前>" * 60, "result": {"<OD>": "text"}}]}
        for item in items
    ]
    pool = WorkerPool(0)
    DrawAnswers(tmp_path / "drawn")(items, rows, pool)
    pool.close()
    assert len(list((tmp_path / "drawn").iterdir())) == 1, "a long name is cut"
    assert "drawing_error" not in rows[0]["answers"][0]
    assert "does not exist" in rows[1]["answers"][0]["drawing_error"]
    assert "is not drawn" in capsys.readouterr().err
