"""The whole measurement on a tiny model: real processes, real rivals, nothing asserted on time."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import zlib

import pytest

from tests.benchmarks.rivals.__main__ import main
from tests.benchmarks.rivals.engines.engine import ENGINES, OURS, EngineInfo
from tests.benchmarks.rivals.inputs import make_inputs
from tests.benchmarks.rivals.processes import Worker, WorkerError, environment
from tests.benchmarks.rivals.run import Bench
from tests.benchmarks.rivals.settings import Settings
from tests.benchmarks.rivals.weights import prepare_weights


def info(name, **changes):
    return EngineInfo(label=name, factory=f"tests.benchmarks.rivals.fake_engines:{name}", **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def settings(folder):
    weights = str(prepare_weights("tiny", 0, folder))
    return Settings(
        weights=weights,
        platform="cpu",
        dtype="float32",
        threads=1,
        image_size=64,
        new_tokens=8,
        seed=0,
        cache=weights,
    )


def run(folder, settings, engines, cases, **options):
    bench = Bench(
        model="tiny",
        settings=settings,
        engines=engines,
        cases=cases,
        batches=[1],
        rounds=2,
        malloc="tuned",
        folder=folder,
        **options,
    )
    return {result.case: result for result in bench.run(lambda *_: None)}


def test_ours_beside_transformers_a_wrong_engine_and_absent_ones(folder, settings):
    engines = {
        OURS: ENGINES[OURS],
        "eager": ENGINES["torch-eager"],
        "wrong": info("Wrong"),
        "absent": info("Wrong", packages=("json", "a_package_that_nobody_has")),
        "elsewhere": info("Wrong", platforms=("tpu",)),
        "broken": info("Broken"),
    }
    found = run(folder, settings, engines, ["vision", "beam", "step", "limit"], together=True)
    assert list(found) == ["matmul", "memory", "vision", "beam", "step", "limit"]
    for case in ("vision", "beam", "step"):
        result = found[case]
        line = json.loads(json.dumps(result.to_json()))
        assert line["ceilings"]["gflop_per_second"] > 0
        assert line["floor_seconds"] > 0
        notes = {name: row.note for name, row in result.rows.items() if row.note is not None}
        # A step is the difference of two calls, which a busy machine turns into noise.
        noise = "lost in the noise: "
        lost = {name for name, note in notes.items() if case == "step" and note.startswith(noise)}
        for name in lost:
            del notes[name]
        for name in {OURS, "eager"} - lost:
            assert line["engines"][name]["rounds"] == 2
            assert line["engines"][name]["share_of_roofline"] is not None
        assert line["fastest_rival"] == (None if "eager" in lost else "eager")
        assert (line["ratio"] is None) == bool(lost)
        assert notes.pop("wrong").startswith("MISMATCH, not timed: ")
        assert notes == {
            "absent": 'not installed (a_package_that_nobody_has): pip install -e ".[bench]"',
            "elsewhere": "does not run on cpu",
            "broken": "failed: OSError: no library for float32",
        }
    # A long limit is compared with the exact one, of this library alone.
    limit = found["limit"]
    ours = {row.label: row.note for row in limit.rows.values() if row.label.startswith("limit")}
    assert ours == {"limit of exactly so many": None, "limit of 1,024": None}
    assert limit.ratio() is not None


@pytest.mark.parametrize("name", ["onnxruntime", "ctranslate2"])
def test_rivals_of_the_extra(folder, settings, name):
    if ENGINES[name].missing():
        pytest.skip(f"needs {', '.join(ENGINES[name].missing())}: the extra [bench]")
    cases = ["vision", "encoder", "greedy", "beam", "images"]
    found = run(folder, settings, {OURS: ENGINES[OURS], name: ENGINES[name]}, cases)
    offered = {case for case in cases if name in found[case].rows}
    assert offered == ({"greedy", "beam"} if name == "ctranslate2" else set(cases))
    for case in offered:
        assert found[case].rows[name].note is None, found[case].rows[name].note


@pytest.fixture
def start(settings):
    with contextlib.ExitStack() as stack:

        def start(engine, **options):
            worker = Worker(engine, settings, environment(settings, "tuned"), **options)
            return stack.enter_context(worker)

        yield start


def test_an_engine_that_prints_disturbs_nobody(start, tmp_path):
    request = {"call": "encoder", "batch": 1, "output": str(tmp_path / "x.npy")}
    assert start(info("Chatty")).ask(do="check", **request).keys() == {"wall", "cpu", "others"}


def test_errors_are_answers_and_a_death_is_noticed(start):
    worker = start(info("Mortal"))
    with pytest.raises(WorkerError, match=r"^RuntimeError: no such kernel$"):
        worker.ask(do="time", call="vision", batch=1)
    for _ in range(2):
        with pytest.raises(WorkerError, match="its process ended"):
            worker.ask(do="time", call="beam", batch=1)


def test_an_engine_that_takes_too_long_is_ended(start):
    worker = start(info("Endless"), limit=300)
    worker._limit = 0.5  # loading it may take longer
    with pytest.raises(WorkerError, match=r"^ended, as it took more than 0.5 s$"):
        worker.ask(do="time", call="beam", batch=1)
    assert worker._process.wait(60) == -signal.SIGKILL


def test_workers_stand_still_between_calls_and_keep_to_their_threads(start):
    worker = start(ENGINES[OURS])
    number = worker._process.pid
    os.waitpid(number, os.WUNTRACED)
    with open(f"/proc/{number}/stat") as file:
        assert file.read().rsplit(")", 1)[1].split()[0] == "T"
    assert len(os.sched_getaffinity(number)) == 1


def test_the_same_environment_but_for_malloc(settings, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=7")
    tuned, default = environment(settings, "tuned"), environment(settings, "default")
    assert "mmap_max=0" in tuned.pop("GLIBC_TUNABLES")
    assert "GLIBC_TUNABLES" not in default
    assert tuned == default
    assert tuned["OMP_NUM_THREADS"] == "1"


def test_inputs_and_weights_are_the_same_in_every_process(folder, settings):
    assert str(prepare_weights("tiny", 0, folder)) == settings.weights
    assert str(prepare_weights("tiny", 1, folder)) != settings.weights
    code = (
        "import json, sys\n"
        "from tests.benchmarks.rivals.settings import Settings\n"
        "from tests.benchmarks.rivals.test_bench import checksums\n"
        "print(json.dumps(checksums(Settings(**json.loads(sys.argv[1])))))\n"
    )
    command = [sys.executable, "-c", code, json.dumps(dataclasses.asdict(settings))]
    assert json.loads(subprocess.check_output(command)) == checksums(settings)


def checksums(settings):
    inputs = make_inputs(settings.model_config(), settings, 2)
    return [zlib.crc32(array.tobytes()) for array in vars(inputs).values()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "3"], "--rounds is 3, expected at least 5"),
        (["--new-tokens", "4"], "--new-tokens is 4, expected more than 4"),
        (["--threads", "9999"], "--threads is 9999, but this machine has"),
    ],
)
def test_wrong_calls_end_with_a_sentence(capsys, arguments, message):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_model_that_is_not_there_ends_the_command(tmp_path, capsys):
    options = ["--quick", "--device", "cpu", "--cache", str(tmp_path)]
    assert main(["--model", str(tmp_path / "nowhere"), *options]) == 2
    assert "nowhere" in capsys.readouterr().err


# The same measurement as above with its table; loading an engine once more takes nine seconds.
@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    output = tmp_path / "bench.jsonl"
    arguments = ["--model", "tiny", "--image-size", "64", "--engines", "jax", "--cases", "encoder"]
    options = ["--quick", "--device", "cpu", "--cache", str(tmp_path), "--json", str(output)]
    assert main([*arguments, *options]) == 0
    table = capsys.readouterr().out
    assert "encoder, 18 tokens" in table
    assert "florence-jax" in table
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["case"] for line in lines] == ["matmul", "memory", "encoder"]
    assert all(line["quick"] and line["batch"] == 1 for line in lines)
