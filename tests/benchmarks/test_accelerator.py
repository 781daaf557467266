"""The run on an accelerator in its quick form: every stage, on the smallest model, on the CPU."""

import json
import sys
import time

import pytest

from tests.benchmarks.accelerator import __main__ as program
from tests.benchmarks.accelerator.plan import STAGES, Context, Sizes, Unit, units
from tests.benchmarks.accelerator.profile import own_times
from tests.benchmarks.accelerator.report import Report, Row


def test_the_quick_form_measures_everything(tmp_path):
    status = program.main(["--out", str(tmp_path), "--quick"])
    table = json.loads((tmp_path / "accelerator.json").read_text())
    rows = [Row(**row) for row in table["rows"]]
    # A difference of two short calls may be lost in what else this machine does.
    failed = [row for row in rows if row.failed and "lost in the noise" not in row.note]
    assert not failed, "each unit has its result"
    assert {row.stage for row in rows} == set(STAGES)
    checks = [row for row in rows if row.stage == "correctness"]
    assert all(row.met is not False for row in checks)
    # Targets are an accelerator's: here only that they are judged.
    assert status == any(row.failed or row.met is False for row in rows)
    found = {row.what for row in rows}
    for engine in ("florence-jax", "transformers, SDPA"):
        assert any(what.startswith("image tower") and what.endswith(engine) for what in found)
    assert all(row.share is not None for row in rows if row.what.startswith("image tower"))
    for name in ("vision", "beam", "training"):
        listed = [row for row in rows if row.stage == "profile" and row.what.startswith(name)]
        assert len(listed) == 11, "the whole and the ten most expensive"
        times = [row.value for row in listed]
        assert times[1:] == sorted(times[1:], reverse=True)
        assert sum(times[1:]) <= times[0]
    lines = (tmp_path / "accelerator.md").read_text().splitlines()
    assert sum(line.startswith("|") for line in lines) == len(rows) + 2


def test_a_loop_is_not_counted_with_its_body():
    events = [(0.0, 10.0, "while"), (1.0, 3.0, "dot"), (5.0, 4.0, "dot"), (6.0, 1.0, "add")]
    times = sorted(own_times([*events, (12.0, 2.0, "copy")]))
    assert times == [("add", 1.0), ("copy", 2.0), ("dot", 3.0), ("dot", 3.0), ("while", 3.0)]


def test_names_of_units_are_unique_and_whole():
    names = [(unit.stage, unit.name) for stage in STAGES for unit in units(stage, Sizes())]
    assert len(set(names)) == len(names) > 30


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import time; print(ROW, flush=True); time.sleep(60)", "ended after 3 s"),
        ("print(ROW, flush=True); raise MemoryError('all of it')", "exit status 1: MemoryError"),
        ("import os; print(ROW, flush=True); os.kill(os.getpid(), 9)", "exit status -9"),
    ],
)
def test_a_unit_that_hangs_or_dies_loses_only_what_it_had_not_measured(
    tmp_path, monkeypatch, code, message
):
    row = json.dumps({"stage": "speed", "what": "first", "value": 1.0})
    command = [sys.executable, "-c", code.replace("ROW", repr(row))]
    monkeypatch.setattr(program, "unit_command", lambda *_: command)
    report = Report(tmp_path, {})
    unit = Unit(stage="speed", name="mine", seconds=3, run=lambda context: iter(()))
    context = Context(sizes=Sizes(), platform="cpu", folder=str(tmp_path))
    started = time.monotonic()
    assert program._run_apart(unit, context, report, 600), "done, if not well"
    assert time.monotonic() - started < 30
    table = json.loads((tmp_path / "accelerator.json").read_text())
    first, last = table["rows"]
    assert (first["what"], first["value"]) == ("first", 1.0)
    assert last["what"] == "mine"
    assert last["note"].startswith(message)
    if "MemoryError" in message:
        assert last["details"]["log"][-1] == "MemoryError: all of it"


def test_a_resumed_run_does_only_what_is_left(tmp_path, monkeypatch):
    run = []

    def units(stage, sizes):
        def result(name):
            def rows(context):
                run.append(f"{stage}/{name}")
                yield Row(stage=stage, what=f"{stage} {name}", value=float(len(run)))

            return Unit(stage=stage, name=name, seconds=60, run=rows)

        return [result("a"), result("b")]

    def call(*more):
        run.clear()
        program.main(["--out", str(tmp_path), "--quick", *more])
        table = json.loads((tmp_path / "accelerator.json").read_text())
        return [row["what"] for row in table["rows"] if row["value"] is not None]

    monkeypatch.setattr(program.plan, "units", units)
    assert call("--stages", "speed") == [
        "environment a",
        "environment b",
        "speed a",
        "speed b",
    ]
    expected = ["environment a", "environment b", "speed a", "speed b", "profile a", "profile b"]
    assert call("--stages", "speed", "profile", "--resume") == expected
    assert run == ["profile/a", "profile/b"]
    # What is named runs again, and its earlier row is gone.
    assert sorted(call("--stages", "speed", "--resume", "--units", "b")) == sorted(expected)
    assert run == ["speed/b"]
    assert call("--stages", "speed", "--time-limit", "1") == []
    assert call("--stages", "speed", "--resume") == expected[:4], "nothing of it had been reached"
    assert len(run) == 4


def test_a_unit_that_the_run_has_no_time_for_is_left_to_the_next(tmp_path, monkeypatch):
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(program, "unit_command", lambda *_: command)
    report = Report(tmp_path, {})
    unit = Unit(stage="speed", name="mine", seconds=60, run=lambda context: iter(()))
    context = Context(sizes=Sizes(), platform="cpu", folder=str(tmp_path))
    assert not program._run_apart(unit, context, report, 1)
    table = json.loads((tmp_path / "accelerator.json").read_text())
    assert [row["note"] for row in table["rows"]] == ["ended after 1 s"]


def test_a_device_that_is_not_there_ends_the_run(tmp_path, capsys):
    status = program.main(["--out", str(tmp_path), "--device", "tpu"])
    assert status == 2
    assert "tpu cannot be used: exit status 1: " in capsys.readouterr().err
    table = json.loads((tmp_path / "accelerator.json").read_text())
    assert [row["what"] for row in table["rows"]] == ["machine"]
    assert table["finished"] == []
