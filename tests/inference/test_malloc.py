"""The command line starts itself again with malloc settings: once, and only where it should."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from florence_jax.inference.malloc import TUNED

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not os.confstr("CS_GNU_LIBC_VERSION"),
    reason="needs Linux with glibc, whose settings these are",
)

# What the command line does first, and then a report of what it has become.
SCRIPT = """
import os, sys
from florence_jax.inference.malloc import restart_with_tuned_malloc
if not os.environ.get("FLORENCE_JAX_MALLOC_STARTED"):
    print("first", flush=True)
restart_with_tuned_malloc({choice!r})
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], sys.flags.dev_mode)
print(sys.stdin.read())
{ending}
"""


def environment(**variables):
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("GLIBC_TUNABLES", "JAX_PLATFORMS") and not name.startswith("FLORENCE_JAX")
    }
    # The tests may run where an accelerator's plugin is installed.
    return {**kept, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **variables}


def start(tmp_path, choice=None, ending="sys.exit(7)", **variables):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(choice=choice, ending=ending))
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "ignore", script, "a b", "--c"],
        env=environment(**variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_process_arguments_streams_and_status_stay(tmp_path):
    process = start(tmp_path)
    output, errors = process.communicate("from outside")
    assert errors == ""
    assert output.splitlines() == [
        "first",
        f"{process.pid} {TUNED} ['a b', '--c'] True",
        "from outside",
    ]
    assert process.returncode == 7


def test_a_signal_ends_it_as_ever(tmp_path):
    process = start(tmp_path, ending="import time; time.sleep(60)")
    process.stdin.close()
    assert process.stdout.readline() == "first\n"
    assert TUNED in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == -signal.SIGTERM
    process.stdout.close()
    process.stderr.close()


@pytest.mark.parametrize(
    ("choice", "variables", "tuned"),
    [
        (None, {}, True),
        (None, {"FLORENCE_JAX_MALLOC": "default"}, False),
        (None, {"FLORENCE_JAX_MALLOC": "tuned", "JAX_PLATFORMS": "cuda"}, True),
        ("default", {"FLORENCE_JAX_MALLOC": "tuned"}, False),
        ("tuned", {"JAX_PLATFORMS": "cuda"}, True),
        (None, {"JAX_PLATFORMS": "cuda,cpu"}, False),
        (None, {"JAX_PLATFORMS": "cpu,cuda"}, True),
        ("tuned", {"GLIBC_TUNABLES": "glibc.malloc.check=0"}, False),
        # Its settings were taken away: it must not start again and again.
        ("tuned", {"FLORENCE_JAX_MALLOC_STARTED": "1"}, False),
    ],
)
def test_who_decides(tmp_path, choice, variables, tuned):
    output, errors = start(tmp_path, choice, **variables).communicate("")
    assert errors == ""
    assert (TUNED in output) is tuned
    if "GLIBC_TUNABLES" in variables:
        assert variables["GLIBC_TUNABLES"] in output


def test_an_installed_accelerator_is_not_ours_to_judge(tmp_path):
    (tmp_path / "jax_plugins").mkdir()
    output, _ = start(
        tmp_path, PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}", JAX_PLATFORMS=""
    ).communicate("")
    assert TUNED not in output


def test_a_wrong_variable_is_named(tmp_path):
    process = start(tmp_path, FLORENCE_JAX_MALLOC="fast")
    _, errors = process.communicate("")
    assert "FLORENCE_JAX_MALLOC is 'fast', expected one of default, tuned" in errors


@pytest.mark.parametrize("command", ["console script", "module"])
@pytest.mark.parametrize(
    ("arguments", "starts"),
    [((), 2), (("--malloc", "default"), 1), (("--malloc", "tuned"), 2)],
    ids=["as it is", "default", "tuned"],
)
def test_both_ways_to_call_the_command(tmp_path, command, arguments, starts):
    script = Path(sys.executable).with_name("florence-jax")
    if command == "console script" and not script.exists():
        pytest.skip(f"needs the package installed: there is no {script}")
    # Python imports this module whenever it starts.
    log = tmp_path / "starts"
    (tmp_path / "sitecustomize.py").write_text(
        f"import os\nwith open({str(log)!r}, 'a') as file:\n"
        "    print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), file=file)\n"
    )
    call = [script] if command == "console script" else [sys.executable, "-m", "florence_jax"]
    process = subprocess.Popen(
        [*call, "predict", tmp_path / "nowhere.jpg", "--task", "<OD>", *arguments],
        env=environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    output, errors = process.communicate()
    expected = [f"{process.pid} None", f"{process.pid} {TUNED}"]
    assert log.read_text().splitlines() == expected[:starts]
    assert process.returncode == 2
    assert output == ""
    assert errors.count("does not exist") == 1
