"""What `florence-jax` says before it does anything."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import florence_jax
from florence_jax.cli.main import main

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
    for command in ("predict", "verify-output", "demo", "export", "evaluate", "annotate", "bench"):
        assert command in text
    examples = text.partition("examples:\n")[2].partition("\n\n")[0].splitlines()
    assert len(examples) == 3
    assert all(line.startswith("  florence-jax ") for line in examples)
    models = text.partition("models (--model):\n")[2]
    assert "shapes " in models


def test_the_examples_of_the_help_are_commands(capsys):
    from florence_jax.cli.help import EPILOG
    from florence_jax.cli.main import _parser

    for line in EPILOG.splitlines():
        if line.startswith("  florence-jax "):
            _parser().parse_args(line.replace('"', "").split()[1:])


def test_the_version_names_what_is_at_work(capsys):
    status, text, errors = said(capsys, "--version")
    assert (status, errors) == (0, "")
    assert text.startswith(f"florence-jax {florence_jax.__version__}\n")
    for name in ("jax", "flax"):
        assert f"{name} {importlib.metadata.version(name)}" in text
    assert "cpu" in text.partition("backends installed: ")[2]


def test_the_version_and_the_help_import_no_jax():
    code = (
        "import sys\nfrom florence_jax.cli.main import main\n"
        "assert main([]) == 0\n"
        "try:\n    main(['--version'])\nexcept SystemExit as left:\n    assert not left.code\n"
        "loaded = {'jax', 'flax', 'torch', 'transformers'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


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
    ],
)
def test_a_near_miss_is_named(capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(ROOT)
    status, text, errors = said(capsys, *arguments)
    assert (status, text) == (2, "")
    assert message in errors
