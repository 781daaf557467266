"""How a program ends: a sentence and a status, whatever it stumbled over."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from florence_jax.runtime.program import run_program

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from florence_jax.runtime.program import run_program
from florence_jax.runtime.standard_streams import standard_output
def action():
    {body}
    return 0
sys.exit(run_program("it", action))
"""


def shell(body, redirection, **options):
    program = PROGRAM.format(body=body)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONUNBUFFERED", None)
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'"$0" -c "$1" {redirection}', sys.executable, program],
        capture_output=True, text=True, env=environment, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("a is 3, expected 4"), "it: a is 3, expected 4\n"),
        (MemoryError(), "it: not enough memory\n"),
        (RecursionError("deep"), "it: nested too deeply to be read\n"),
        (ModuleNotFoundError("No module named 'x'", name="x"), "it: the package x is not"),
        (OSError(28, "No space left on device", "out"), "it: out: No space left on device: make"),
        (UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates not allowed"), "it: text that"),
        (KeyError("bbox"), "it: 'bbox' is missing (KeyError, a mistake in this program: please"),
        (TypeError("int is no list"), "it: TypeError: int is no list (TypeError, a mistake"),
    ],
)
def test_an_error_is_a_sentence_and_a_status(capsys, monkeypatch, error, said):
    def action():
        raise error

    monkeypatch.delenv("FLORENCE_JAX_TRACEBACK", raising=False)
    assert run_program("it", action) == 2
    assert capsys.readouterr().err.startswith(said)
    monkeypatch.setenv("FLORENCE_JAX_TRACEBACK", "1")
    with pytest.raises(type(error)):
        run_program("it", action)


def test_ctrl_c_says_what_is_kept(capsys):
    def action():
        raise KeyboardInterrupt

    assert run_program("it", action, interrupted="what was finished is written") == 130
    assert capsys.readouterr().err == "\nwhat was finished is written\n"


def test_a_reader_that_ends_is_no_error():
    done = shell("for n in range(99999): print(n)", "| head -1")
    assert (done.returncode, done.stdout, done.stderr) == (141, "0\n", "")


def test_a_full_disk_behind_standard_output_is_named():
    done = shell("print(1)", "> /dev/full")
    assert done.returncode == 2
    assert done.stderr == (
        "it: standard output: No space left on device: make room, or name another place\n"
    )


def test_closed_standard_streams_take_no_data(tmp_path):
    body = "file = open('data', 'w'); print('said'); sys.stdout.flush(); file.write('x'); "
    body += "import subprocess; subprocess.run(['echo', 'child'], check=False)"
    done = shell(body, "<&- >&- 2>&-", cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "data").read_text() == "x"


def test_results_are_not_lost_in_a_closed_standard_output():
    done = shell("standard_output()", ">&-")
    assert done.returncode == 2
    assert done.stderr == "it: standard output is closed: name a file to write to (--output)\n"
