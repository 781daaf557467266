"""What `florence-jax` says before it does anything."""

import argparse
import importlib.metadata
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import florence_jax
from florence_jax.cli.help import COMMANDS, GROUPS
from florence_jax.cli.main import command_parser, main

ROOT = Path(__file__).resolve().parents[1]


def said(capsys, *arguments):
    """(status, stdout, stderr) of a call."""
    try:
        status = main(list(arguments))
    except SystemExit as left:
        status = left.code
    return status, *capsys.readouterr()


def test_no_command_is_the_help(capsys):
    status, text, errors = said(capsys)
    assert (status, errors) == (0, "")
    assert said(capsys, "--help") == (0, text, "")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    for group, commands in GROUPS.items():
        at = lines.index(group)
        for number, (name, command) in enumerate(commands.items()):
            assert lines[at + 1 + 2 * number].split()[0] == name
            assert lines[at + 2 + 2 * number].strip() == command.example


@pytest.mark.parametrize(("name", "command"), COMMANDS.items(), ids=list(COMMANDS))
def test_a_command_has_examples_and_they_parse(name, command):
    parser = command_parser([name])
    example = shlex.split(command.example.partition(" >")[0])[1:]
    assert example[0] == name
    parser.parse_args(example)
    if name != "train":  # whose help is tyro's
        (commands,) = (
            action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
        )
        assert re.search(
            rf"^examples?:\n.*florence-jax {name}", commands.choices[name].epilog, re.S | re.M
        )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_at_most_80_columns_wide(capsys, monkeypatch, name):
    # Of `train`, tyro draws boxes as wide as the terminal.
    monkeypatch.setenv("COLUMNS", "80" if name == "train" else "200")
    status, text, errors = said(capsys, name, "--help")
    assert (status, errors) == (0, "")
    assert [line for line in text.splitlines() if len(line) > 80] == []


def test_the_version_names_what_is_at_work(capsys):
    status, text, errors = said(capsys, "--version")
    assert (status, errors) == (0, "")
    assert text.startswith(f"florence-jax {florence_jax.__version__}\n")
    for name in ("jax", "flax"):
        assert f"{name} {importlib.metadata.version(name)}" in text
    assert "cpu" in text.partition("backends installed: ")[2]


IMPORTED = """
import contextlib, io, sys
from florence_jax.cli.main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    for call in {calls}:
        with contextlib.suppress(SystemExit):
            main(call)
    print(*sorted({heavy} & set(sys.modules)), file=sys.__stdout__)
"""


@pytest.mark.parametrize(
    ("calls", "heavy"),
    [
        ([[], ["--version"], ["--nonsense"], ["predcit"]], {"numpy", "PIL", "huggingface_hub"}),
        ([[name, "--help"] for name in COMMANDS], {"optax", "orbax"}),
        ([[name, "--nonsense"] for name in COMMANDS], {"optax", "orbax"}),
        (
            [
                ["train", "--config", f"train/recipes/{name}.py", "--nonsense"]
                for name in ("lora", "full", "detection", "frozen_tower", "docvqa")
            ],
            {"optax", "orbax"},
        ),
    ],
    ids=["the program", "help", "a wrong option", "a wrong setting of a recipe"],
)
def test_what_needs_no_model_imports_no_jax(calls, heavy):
    """Nor anything else that makes a user wait."""
    code = IMPORTED.format(calls=calls, heavy=heavy | {"jax", "flax", "torch", "transformers"})
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert done.stdout.split() == []


def test_the_version_stands_in_one_place():
    for page, pattern in (("CITATION.cff", r"^version: (\S+)$"), ("CHANGELOG.md", r"^## (\S+)")):
        found = re.search(pattern, (ROOT / page).read_text(encoding="utf-8"), re.M)
        assert found is not None, page
        assert found[1] == florence_jax.__version__, page
    assert importlib.metadata.version("florence-jax") == florence_jax.__version__


def on_a_terminal(**variables):
    """What a wrong call prints where standard error is a terminal."""
    ours, theirs = pty.openpty()
    environment = {"TERM": "xterm", **variables}
    inherited = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    done = subprocess.Popen(
        [sys.executable, "-m", "florence_jax", "verify-output", "/nowhere"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=theirs, env=inherited | environment,
    )  # fmt: skip
    os.close(theirs)
    with open(ours, "rb", buffering=0) as terminal:
        text = terminal.read(4096)
        assert done.wait() == 2
    return text.decode()


def test_an_error_has_colour_on_a_terminal_alone():
    assert on_a_terminal().startswith("\033[1;31mflorence-jax:\033[0m /nowhere")
    assert on_a_terminal(NO_COLOR="1").startswith("florence-jax: /nowhere")
    assert on_a_terminal(TERM="dumb").startswith("florence-jax: /nowhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predcit", "x.jpg"], "'predcit' is no command: did you mean 'predict'?"),
        (["Predict"], "did you mean 'predict'?"),
        (["verify"], "did you mean 'verify-output'?"),
        (["anotate"], "did you mean 'annotate'?"),
        (["help"], "did you mean `florence-jax --help`?"),
        (["xyzzy"], "'xyzzy' is no command (choose from predict, "),
        (["README.md"], "did you mean `florence-jax predict README.md --task ...`?"),
        (["predict", "x.jpg", "--outptu", "y"], "--outptu y: did you mean '--output'?"),
        (["predict", "x.jpg", "--formt=csv"], "did you mean '--format'?"),
        (["demo", "--ouput", "x"], "did you mean '--output'?"),
        (["predict", "x.jpg", "--format", "yol"], "did you mean 'yolo'?"),
        (["--versoin"], "did you mean '--version'?"),
        (["predict", "x.jpg", "--batch-size", "0"], "'0' is no whole number of at least 1"),
        (["bench", "--batch-size", "two"], "'two' is no whole number of at least 1"),
    ],
)
def test_a_near_miss_is_named(capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(ROOT)
    status, text, errors = said(capsys, *arguments)
    assert (status, text) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1


IMAGE = "florence_jax/assets/shapes/scenes/test/000200.png"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", IMAGE, "--task", "<ODD>"], "did you mean '<OD>'?"),
        (["predict", IMAGE, "--task", "detect"], "did you mean '<OD>'?"),
        (["predict", "nowhere.jpg", "--task", "<Question>"], "nowhere.jpg does not exist"),
        (["predict", "nowhere.jpg", "--task", "<OD>"], "nowhere.jpg does not exist"),
        (["predict", "nowhere.jpg", "--task", "<OD>", "--output-dir", "out"], "does not exist"),
        (["predict", IMAGE, "--task", "<OD>", "--beams", "0"], "num_beams must be"),
        (["predict", IMAGE, "--task", "<OD>", "--sample"], "needs --seed N"),
        (["predict", IMAGE, "--task", "<OD>", "--label", "cat"], "pass --constrained too"),
        (["predict", IMAGE, "--task", "<OD>", "--top-p", "2"], "top_p must be"),
        (["annotate", "nowhere", "--output", "out"], "nowhere does not exist"),
        (["annotate", IMAGE, "--output", "out", "--max-new-tokens", "0"], "max_new_tokens must"),
        (["evaluate", "own", "--data", "nowhere.json"], "nowhere.json is no file"),
        (["bench", "--task", "<ODD>"], "did you mean '<OD>'?"),
        (["bench", "--task", "<REGION_TO_OCR>"], "needs a region"),
        (["bench", "--beams", "0"], "num_beams must be"),
        (["export", "docs"], "docs exists already"),
    ],
)
def test_what_is_cheap_to_check_is_said_before_a_model_that_is_missing(
    capsys, monkeypatch, arguments, message
):
    monkeypatch.chdir(ROOT)
    status, text, errors = said(capsys, *arguments, "--model", "no-such-model")
    assert (status, text) == (2, "")
    assert message in errors
    assert "no-such-model" not in errors
    assert not Path("out").exists()


def test_a_conversion_refuses_its_destination_before_it_looks_for_the_model(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    status, _, errors = said(capsys, "convert", "no-such-model", "docs")
    assert status == 2
    assert "docs exists already" in errors


def test_a_task_that_only_a_model_can_know_needs_the_model(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = ["predict", IMAGE, "--task", "<Question>", "--model", "no-such-model"]
    status, _, errors = said(capsys, *arguments)
    assert status == 2
    assert "no-such-model is neither" in errors
