"""Every notebook runs in a fresh kernel, says what it must, and was saved after such a run."""

import json
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
MOST_BYTES = 600_000
# What a notebook must print, and how often.
KEY_RESULTS = {
    "backbone.ipynb": {
        "parameters equal: True": 1,
        "stem.norm.bias: is [5], expected [96]": 1,
        "stride 32: (6, 6) cells": 1,
        "complete: every input has its row, once": 1,
        "equal to the Python API's within 1e-5: True": 1,
        "better by at least 30 points: True": 1,
        "mean IoU above 0.5: True": 1,
    },
    "batch_inference.ipynb": {
        "exit status: -9": 1,
        "run the same command again": 1,
        "complete: every input has its row, once": 2,
        "job.decoding.num_beams: 1 there, 3 here": 1,
        "97 rows, 1 with an error": 1,
    },
    "data_engine.ipynb": {"round-0: 64 images": 1, "round-1: 64 images": 1},
    "fine_tuning.ipynb": {"tokens, equal: True": 3, "tokens, equal: False": 0},
    "parity.ipynb": {
        "tokens, equal: True": 3,
        "tokens, equal: False": 0,
        "float32: all 29 stages are within their tolerances": 1,
        "intact                    0 stages over, first: none": 1,
        "first: encoder/layer1": 1,
        "first: vision/stage2/block0/channel": 1,
        "first: decoder/layer0": 1,
        "last bit of one weight    0 stages over, first: none": 1,
    },
    "quickstart.ipynb": {
        "15 answers": 1,
        "TRY, 5 boxes": 3,
        "is not an image in a supported format": 1,
    },
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
NEEDED = ("ipykernel", "ipywidgets", "matplotlib", "nbclient", "pandas", "rich", "transformers")
MISSING = [name for name in NEEDED if find_spec(name) is None]
every_notebook = pytest.mark.parametrize("name", KEY_RESULTS)


def read(name):
    return json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell["outputs"]]


def printed(notebook):
    # Compilers may warn on stderr.
    streams = [one for one in outputs(notebook) if one.get("name") == "stdout"]
    return "".join("".join(one["text"]) for one in streams)


def check(notebook, name):
    text = printed(notebook)
    assert {result: text.count(result) for result in KEY_RESULTS[name]} == KEY_RESULTS[name]
    for before, after in re.findall(r"F1 before: ([\d.]+), after: ([\d.]+)", text):
        assert float(after) > float(before) + 0.3


def test_every_notebook_is_known_here():
    assert {path.name for path in NOTEBOOKS.glob("*.ipynb")} == KEY_RESULTS.keys()


@every_notebook
def test_what_is_saved_is_one_whole_run(name):
    notebook = read(name)
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert notebook["metadata"].keys() == {"kernelspec", "language_info"}
    assert not any(cell["metadata"] for cell in notebook["cells"])
    check(notebook, name)
    kinds = {one.get("name", one["output_type"]) for one in outputs(notebook)}
    assert kinds <= {"stdout", "display_data", "execute_result"}


@every_notebook
def test_no_path_of_a_machine_and_few_bytes(name):
    text = (NOTEBOOKS / name).read_text(encoding="utf-8")
    for path in ("/home/", "/root/", "/tmp/", "/work/", "/Users/", "site-packages"):
        assert path not in text
    assert len(text.encode()) < MOST_BYTES


@every_notebook
def test_it_opens_with_what_a_reader_gets_and_needs(name):
    opening = source(read(name)["cells"][0])
    assert re.match(r"# .+\n\nAfter this notebook you can ", opening)
    assert '**You need** a checkout and `pip install -e ".[notebooks]"`' in opening


@every_notebook
def test_every_figure_is_there_with_a_title_and_axes(name):
    drawing = 0
    for cell in code_cells(read(name)):
        shown = [one for one in cell["outputs"] if one["output_type"] == "display_data"]
        images = sum("image/png" in one["data"] or "image/jpeg" in one["data"] for one in shown)
        figures = len(re.findall(r"^plt\.show\(\)|^show\(", source(cell), re.M))
        # Sharding draws with text: `show` prints there.
        assert images == figures or name == "sharding.ipynb"
        drawing += images
        if "plt.subplots(" in source(cell):
            assert all(f"{part}=" in source(cell) for part in ("title", "xlabel", "ylabel")) or (
                ".set_ylabel(" in source(cell)
            )
    assert drawing


@pytest.mark.slow
@pytest.mark.skipif(
    bool(MISSING), reason=f'needs {", ".join(MISSING)}: pip install -e ".[notebooks]"'
)
@every_notebook
def test_runs_in_a_fresh_kernel(name, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    # Cells call `florence-jax` and `python`, as in an activated environment.
    folder = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", folder + os.pathsep + os.environ["PATH"])
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=1800,
        coalesce_streams=True,
        resources={"metadata": {"path": str(NOTEBOOKS)}},
    ).execute()
    check(notebook, name)
