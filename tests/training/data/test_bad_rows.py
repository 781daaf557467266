import json

import pytest

from florence_jax.runtime.jsonl import append_lines, read_lines
from florence_jax.training.metrics.logger import BadRowLog, TooManyProblems


def test_a_row_is_written_down_once_and_remembered(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    first = BadRowLog(path, share=0.01, total=10_000)
    first.add([("a", "torn"), ("b", "empty"), ("a", "torn")])
    first.add([("a", "torn")])
    again = BadRowLog(path, share=0.01, total=10_000)
    again.add([("b", "empty"), ("c", "torn")])
    again.add([("v", "torn")], split="valid")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["id"], row["split"]) for row in rows] == [
        ("a", "train"),
        ("b", "train"),
        ("c", "train"),
        ("v", "valid"),
    ]
    assert rows[1]["reason"] == "empty"
    assert len(again) == 3


@pytest.mark.parametrize(
    ("bad", "seen", "total", "stops"),
    [
        (10, 8, 10_000, False),  # of the first thousand, ten
        (11, 8, 10_000, True),
        (30, 3_000, 10_000, False),
        (31, 3_000, 10_000, True),
        (1, 8, 100, False),
        (2, 8, 100, True),  # there are no thousand rows
        (1, 10**6, 99, True),
    ],
)
def test_the_threshold(tmp_path, bad, seen, total, stops):
    quarantine = BadRowLog(tmp_path / "quarantine.jsonl", share=0.01, total=total)
    quarantine.add([(f"row {number}", "torn") for number in range(bad)])
    if not stops:
        quarantine.check(seen)
        return
    with pytest.raises(
        TooManyProblems, match=r"quarantine_share=0\.01 .* the first is row 0: torn"
    ):
        quarantine.check(seen)


def test_a_run_that_goes_on_is_judged_by_what_it_meets_again(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    bad = [(f"row {number}", "torn") for number in range(60)]
    killed = BadRowLog(path, share=0.01, total=10_000)
    killed.add(bad)
    killed.check(8_000)  # 0.75 %
    # It goes on from an early checkpoint, or with data that were mended.
    again = BadRowLog(path, share=0.01, total=10_000)
    again.check(8)
    again.add(bad[:11])
    with pytest.raises(TooManyProblems, match="11 rows of 8 seen"):
        again.check(8)
    assert len(again) == len(path.read_text().splitlines()) == 60


def test_a_line_that_a_kill_cut_short_costs_no_other(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_lines(path, [{"step": 1}])
    with path.open("a") as stream:
        stream.write('{"step": 2, "lo')
    append_lines(path, [{"step": 3}, {"step": 4}])
    assert [row["step"] for row in read_lines(path)] == [1, 3, 4]
    assert list(read_lines(tmp_path / "none")) == []


def test_a_name_that_is_no_unicode_is_written_down(tmp_path):
    rows = [{"id": "caf\xe9/\udce9.png", "reason": "torn"}]
    append_lines(tmp_path / "lines.jsonl", rows)
    assert list(read_lines(tmp_path / "lines.jsonl")) == rows
