"""Each device's part of each tensor is read straight from the file: nothing holds a whole model.

Orbax restores a saved checkpoint onto the same shardings.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.random_pipeline import random_checkpoint
from tests.sharding.subprocesses import ROOT, environment, run_lines

CASES = ("data=2,fsdp=2,tensor=2:fsdp_tp", "fsdp=8:fsdp", "tensor=8:tp")


def test_a_checkpoint_is_read_in_the_parts_that_devices_keep(tmp_path):
    found = run_lines("loading", str(tmp_path), *CASES)
    assert [line["case"] for line in found] == list(CASES)
    for line in found:
        assert line["exact"], line
        assert line["restored_alike"], line
        assert line["zeros_behind"], line
        assert line["parts_only"], line
        assert line["read_once"], line
        assert line["bytes"] == line["expected_bytes"]
    assert found[0]["padded"] == {"shared/embedding": [1286, 24]}
    assert found[2]["padded"] == {"shared/embedding": [1288, 24]}


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(file)
    return file


def predict(picture, *options):
    command = [sys.executable, "-m", "florence_jax", "predict", "--model"]
    command += [str(random_checkpoint()), "--quiet", str(picture), "--task", "<OD>", *options]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )


def test_a_mesh_that_does_not_fit_is_a_sentence(picture):
    done = predict(picture, "--mesh", "data=3")
    assert done.returncode == 2
    assert "asks for 3 devices, and there are 8" in done.stderr
    assert "--rules belongs to --mesh" in predict(picture, "--rules", "tp").stderr


@pytest.mark.slow
def test_the_command_line_answers_the_same_on_a_mesh(picture):
    arguments = ("--max-new-tokens", "12")
    answers = [
        predict(picture, *arguments, *more).stdout
        for more in (
            (),
            ("--mesh", "data=2,fsdp=2,tensor=2"),
            ("--mesh", "data=8", "--rules", "dp"),
        )
    ]
    results = [json.loads(text)["result"] for text in answers]
    assert results[0] == results[1] == results[2]
