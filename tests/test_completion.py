"""`florence-jax completion`: scripts that complete what the parsers accept."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from florence_jax.cli.completion import train_flags
from florence_jax.cli.main import main
from florence_jax.cli.train import TrainOptions
from florence_jax.cli.train import main as train

ROOT = Path(__file__).resolve().parents[1]
# Ask bash's own programmable completion what it offers for the last word.
ASK = r"""
source "$1"; shift
function=$(complete -p florence-jax | sed 's/.* -F \([^ ]*\) .*/\1/')
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
"$function" florence-jax "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    pytest.importorskip("shtab", reason="needs shtab, which `pip install -e .` brings")
    done = subprocess.run(
        [sys.executable, "-m", "florence_jax", "completion", "bash"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("completion") / "florence-jax.bash"
    path.write_text(done.stdout)
    return path


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["pre"], ["predict"]),
        (["e"], ["embed", "evaluate", "export"]),
        (["predict", "--form"], ["--format"]),
        (["predict", "a.jpg", "--format", "y"], ["yolo"]),
        (["predict", "florence_jax/ru"], ["florence_jax/runtime"]),
        (["convert", "a", "b", "--dtype", "f"], ["float16", "float32"]),
        (["train", "--optimizer.n"], ["--optimizer.name", "--optimizer.no-decay"]),
        (["train", "--optimizer.name", "l"], ["lion"]),
        (["train", "--config", "train/recipes/lo"], ["train/recipes/lora.py"]),
    ],
)  # fmt: skip
def test_bash_completes(script, words, offered):
    done = subprocess.run(
        ["bash", "-c", ASK, "bash", script, "florence-jax", *words],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert sorted(done.stdout.split()) == offered


def test_the_tab_key_completes_a_command(script):
    ours, theirs = pty.openpty()
    lines = [
        f"source {script}",
        "florence-jax() { echo ran:$1; exit; }",
        "florence-jax pre\t",
    ]
    bash = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "dumb"},
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, "".join(f"{line}\n" for line in lines).encode())
    said = b""
    try:
        while part := os.read(ours, 4096):
            said += part
    except OSError:  # what Linux raises when the other end of a terminal is closed
        pass
    os.close(ours)
    bash.wait()
    assert b"ran:predict" in said


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script(shell, capsys):
    pytest.importorskip("shtab", reason="needs shtab, which `pip install -e .` brings")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("verify-output", "output-dir", "optimizer.learning-rate"):
        assert word in script


def test_the_flags_of_train_are_tyros(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    # Each recipe is of another kind of run.
    for recipe in ("lora", "classify", "segment"):
        with pytest.raises(SystemExit):
            train(["--config", str(ROOT / "train" / "recipes" / f"{recipe}.py"), "--help"])
    text = capsys.readouterr().out
    listed = re.findall(r"^[│ ] (--[a-z][\w.-]*)(?:, (--[a-z][\w.-]*))?", text, re.M)
    flags = {flag for pair in listed for flag in pair if flag}
    assert {flag for flag, _ in train_flags(TrainOptions)} == flags
