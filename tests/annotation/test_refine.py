"""The loop: what is done stays done, whatever ends it, and the next run goes on from there."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from florence_jax.annotation.refine import STATE, Phase, Refine, RefineError, refine
from florence_jax.cli.main import main
from florence_jax.runtime.directory_lock import DirectoryInUseError
from tests.batch.fakes import write_pictures

ROOT = Path(__file__).resolve().parents[2]
COUNTS = {"images": 1, "kinds": [{"kind": "ocr", "annotations": 2}], "rejected": {"ocr: tiny": 1}}


def loop(directory, **changes):
    recipe = directory.parent / "recipe.py"
    recipe.write_text("config = None\n")
    settings = {
        "directory": directory,
        "model": "first",
        "rounds": 2,
        "recipe": recipe,
        "checkout": ROOT,
        "image_root": directory.parent,
        "annotate": lambda model, output: ["annotate", "--model", model, "--output", str(output)],
    }
    return Refine(**(settings | changes))


class Scripted(Refine):
    """The loop with small programs in place of the two long ones: same phases, same files."""

    def phases(self):
        log, stop = self.directory.parent / "log", self.directory.parent / "stop"
        for phase in super().phases():
            result = phase.result
            made = "path.mkdir(parents=True, exist_ok=True)"
            if result.suffix:
                made = "path.parent.mkdir(parents=True, exist_ok=True)"
                made += f"; path.write_text({json.dumps(COUNTS)!r})"
            program = textwrap.dedent(f"""\
                import pathlib, sys, time
                path = pathlib.Path({str(result)!r})
                with open({str(log)!r}, "a") as log:
                    log.write({phase.name + os.linesep!r})
                stop = pathlib.Path({str(stop)!r})
                while stop.exists() and stop.read_text() == {phase.name!r}:
                    time.sleep(0.01)
                {made}
                """)
            command = [sys.executable, "-S", "-c", program]
            yield Phase(name=phase.name, command=command, result=result, success=phase.success)


PHASES = [
    "round-0/annotations",
    "round-0/training",
    "round-1/annotations",
    "round-1/training",
    "round-2/annotations",
]


def scripted(directory, **changes):
    given = loop(directory, **changes)
    fields = {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
    return Scripted(**fields)


def begun(directory):
    return (directory.parent / "log").read_text().splitlines()


def test_the_commands_of_a_loop(tmp_path):
    out = tmp_path / "out"
    given = loop(
        out,
        also=['{"kind": "jsonl", "path": "/a.jsonl"}'],
        questions=3,
        words=["steps=9", "optimizer.rules=a 0.0 '.* b' 1.0", "no-x"],
        rounds=1,
    )
    first, training, last = given.phases()
    assert first.command[1:4] == ["-m", "florence_jax", "annotate"]
    assert first.command[4:] == ["--model", "first", "--output", str(out / "round-0/annotations")]
    export = str(out / "round-0" / "training" / "export")
    assert training.command[1:6] == [
        "-m", "florence_jax", "train", "--config", str(given.recipe),
    ]  # fmt: skip
    flags = training.command[6:]
    assert flags[:6] == [
        "--model.start", "first", "--model.architecture", "None",
        "--directory", str(out / "round-0/training"),
    ]  # fmt: skip
    assert flags[8] == "--data.directory="
    assert flags[9:] == ["--steps", "9", "--optimizer.rules", "a", "0.0", ".* b", "1.0", "--no-x"]
    assert last.command[5] == export
    assert flags[6] == "--data.train"
    assert json.loads(flags[7]) == [
        {
            "kind": "annotations",
            "path": str(out / "round-0/annotations"),
            "image_root": str(tmp_path),
            "questions": 3,
        },
        {"kind": "jsonl", "path": "/a.jsonl"},
    ]


def test_every_phase_runs_once_and_more_rounds_go_on(tmp_path):
    out, told = tmp_path / "out", []
    assert refine(scripted(out, rounds=1), told.append)
    assert begun(out) == PHASES[:3]
    assert "round-0: 1 images; 2 ocr; 1 rejected" in told
    assert refine(scripted(out), told.append)
    assert begun(out) == PHASES
    state = json.loads((out / STATE).read_text())
    assert state["done"] == PHASES
    assert [one["round"] for one in state["rounds"]] == ["round-0", "round-1", "round-2"]


def test_another_loop_is_refused_by_name(tmp_path):
    out = tmp_path / "out"
    refine(scripted(out, rounds=1), lambda line: None)
    with pytest.raises(RefineError, match=r"different are: model, words\."):
        refine(scripted(out, model="other", words=["a=1"]), lambda line: None)


def test_a_phase_that_fails_is_named_and_done_again(tmp_path):
    out = tmp_path / "out"
    (tmp_path / "out" / "round-0" / "training").mkdir(parents=True)
    # A file where the export should be a directory: the program fails.
    (out / "round-0" / "training" / "export").write_text("in the way")
    with pytest.raises(RefineError, match="round-0/training failed with status 1"):
        refine(scripted(out), lambda line: None)
    (out / "round-0" / "training" / "export").unlink()
    assert refine(scripted(out), lambda line: None)
    assert begun(out) == [*PHASES[:2], *PHASES[1:]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_loop_goes_on_with_the_phase_where_it_was(tmp_path, number):
    out = tmp_path / "out"
    stop = tmp_path / "stop"
    stop.write_text(PHASES[1])
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from tests.annotation.test_refine import scripted\n"
        "from florence_jax.annotation.refine import refine\n"
        f"sys.exit(0 if refine(scripted(Path({str(out)!r})), print) else 130)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        log = tmp_path / "log"
        while not log.exists() or len(begun(out)) < 2:
            assert process.poll() is None
            time.sleep(0.02)
        with pytest.raises(DirectoryInUseError, match="another process is writing to"):
            refine(scripted(out), lambda line: None)
        process.send_signal(number)
        status = process.wait(timeout=60)
    finally:
        process.kill()
    # Told to end, it ends its phase and says that the loop is not complete.
    assert status == (130 if number == signal.SIGTERM else -number)
    if number == signal.SIGKILL:
        with pytest.raises(DirectoryInUseError, match="or one that it started"):
            refine(scripted(out), lambda line: None)
    stop.unlink()
    deadline = time.monotonic() + 60
    while True:
        try:
            assert refine(scripted(out), lambda line: None)
            break
        except DirectoryInUseError:  # the phase that outlived the loop is about to end
            assert time.monotonic() < deadline
            time.sleep(0.02)
    # Nothing that was done is done again, and the phase that was cut short is.
    assert begun(out) == [*PHASES[:2], *PHASES[1:]]


def test_what_a_loop_needs(tmp_path):
    with pytest.raises(RefineError, match="there is no recipe"):
        loop(tmp_path / "out", recipe=tmp_path / "none.py")
    with pytest.raises(RefineError, match="0 rounds"):
        loop(tmp_path / "out", rounds=0)


def test_relative_paths_of_a_list_mean_nothing_in_another_checkout(tmp_path, monkeypatch, capsys):
    """A loop's processes run in the checkout, where they would name other files or none."""
    write_pictures(tmp_path / "photos", 1)
    (tmp_path / "list.txt").write_text("photos/000.png\n")
    (tmp_path / "recipe.py").write_text("config = None\n")
    words = ["annotate", "list.txt", "--output", "out", "--refine", "recipe.py", "--dry-run"]
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--checkout", str(ROOT)]) == 2
    assert "list.txt names photos/000.png" in capsys.readouterr().err
    (tmp_path / "list.txt").write_text(f"{tmp_path}/photos/000.png\n")
    assert main([*words, "--checkout", str(ROOT)]) == 0


@pytest.mark.slow
def test_two_rounds_of_a_tiny_world(tmp_path):
    """The real programs: a model annotates, learns from that for some steps, annotates again."""
    from tests.annotation.tiny_recipe import save_random
    from train.shapes.refine_experiment import main

    # Random weights have much to say, and next to no learning rate keeps it so.
    save_random(tmp_path / "random")
    command = [str(tmp_path / "out"), "--recipe", str(ROOT / "tests/annotation/tiny_recipe.py"),
               "--model", str(tmp_path / "random"), "--set", "optimizer.learning_rate=1e-7",
               "--labelled", "8", "--pool", "6", "--held-out", "4", "--steps", "2",
               "--refine-steps", "2", "--refine-set", "optimizer.warmup_steps=0",
               "--threshold", "box_score=0", "--threshold", "label_score=0",
               "--threshold", "text_score=0", "--threshold", "least_complexity=0",
               "--max-new-tokens", "16", "--batch-size", "4"]  # fmt: skip
    assert main(command) == 0
    curve = json.loads((tmp_path / "out" / "curve.json").read_text())
    assert [one["model"] for one in curve["models"]] == ["first", "round-0", "round-1"]
    for one in curve["models"]:
        assert 0.0 <= one["held_out"]["<OD> mAP@0.5"] <= 1.0
    loop_directory = tmp_path / "out" / "loop"
    done = json.loads((loop_directory / STATE).read_text())["done"]
    assert done == PHASES
    # Each round has its own model, and a second call does nothing anew.
    weights = [
        {file.name: file.stat().st_mtime_ns for file in place.rglob("*") if file.is_file()}
        for place in sorted(loop_directory.glob("round-*/training/export"))
    ]
    assert len(weights) == 2
    assert main(command) == 0
    assert weights == [
        {file.name: file.stat().st_mtime_ns for file in place.rglob("*") if file.is_file()}
        for place in sorted(loop_directory.glob("round-*/training/export"))
    ]
