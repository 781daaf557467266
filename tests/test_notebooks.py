"""Every notebook runs in a fresh kernel, says what it must, and was saved after such a run."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
# What a notebook must print, and how often.
KEY_RESULTS = {
    "sharding.ipynb": {
        "8 devices": 1,
        "tokens equal: True": 4,
        "tokens equal: False": 0,
        "dp       each token   all-reduce               1          1": 1,
        "fsdp     each token   all-reduce               1          1": 1,
        "dp       once": 0,
        "parameters match no rule": 1,
        "TFLOP": 1,
    },
}
MISSING = [name for name in ("ipykernel", "nbclient", "rich") if find_spec(name) is None]
every_notebook = pytest.mark.parametrize("name", KEY_RESULTS)


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell["outputs"]]


def check(notebook, name):
    # Compilers may warn on stderr.
    streams = [one for one in outputs(notebook) if one.get("name") == "stdout"]
    text = "".join("".join(one["text"]) for one in streams)
    assert {result: text.count(result) for result in KEY_RESULTS[name]} == KEY_RESULTS[name]


def test_every_notebook_is_known_here():
    assert {path.name for path in NOTEBOOKS.glob("*.ipynb")} == KEY_RESULTS.keys()


@every_notebook
def test_what_is_saved_is_one_whole_run(name):
    source = (NOTEBOOKS / name).read_text(encoding="utf-8")
    notebook = json.loads(source)
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert notebook["metadata"].keys() == {"kernelspec", "language_info"}
    assert not any(cell["metadata"] for cell in notebook["cells"])
    check(notebook, name)
    kinds = {one.get("name", one["output_type"]) for one in outputs(notebook)}
    assert kinds <= {"stdout", "display_data"}
    for path in ("/home/", "/root/", "/tmp/", "/work/", "/Users/", "site-packages"):
        assert path not in source


@pytest.mark.slow
@pytest.mark.skipif(
    bool(MISSING), reason=f'needs {", ".join(MISSING)}: pip install -e ".[notebooks]"'
)
@every_notebook
def test_runs_in_a_fresh_kernel(name):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=1800,
        coalesce_streams=True,
        resources={"metadata": {"path": str(NOTEBOOKS)}},
    ).execute()
    check(notebook, name)
