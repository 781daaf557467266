"""Filling is killed at random instants: what was finished stays, and the end is whole.

pytest -m faults -s tests/training/cached_features/test_kills.py
"""

import functools
import json
import multiprocessing
import random
import signal
import time

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from florence_jax.training.config_loader import to_tree
from florence_jax.training.data.sources import JsonlConfig
from tests.training.cached_features.data import frozen_config

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("compiled_on_disk")]

PICTURES, KILLS, ROWS_OF_A_FILE = 400, 24, 8

_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(
    ["train.features", "florence_jax.training.cached_features.vision_tower"]
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    draw = np.random.default_rng(0)
    rows = []
    for number in range(PICTURES):
        Image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "prefix": "<CAPTION>", "suffix": "noise"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonlConfig(path=str(folder / "rows.jsonl"))


def test_no_kill_costs_a_finished_file_or_leaves_half_of_one(source, compiled_on_disk, tmp_path):
    whole = tmp_path / "whole"
    process = started(source, whole, compiled_on_disk)
    process.join()
    assert process.exitcode == 0
    expected = records(whole)
    assert len(expected) == PICTURES

    dice = random.Random(0)
    directory, before, killed, begun = tmp_path / "killed", {}, 0, 1
    while killed < KILLS:
        if len(before) == PICTURES:
            for file in directory.iterdir():
                file.unlink()
            before, begun = {}, begun + 1
        files = len(list(directory.glob("*.safetensors")))
        process = started(source, directory, compiled_on_disk)
        while len(list(directory.glob("*.safetensors"))) == files and process.exitcode is None:
            time.sleep(0.002)
        time.sleep(dice.random() * 0.2)
        if process.exitcode is None:
            process.kill() if killed % 4 else process.terminate()
            killed += 1
        process.join()
        assert process.exitcode in (0, 143, -signal.SIGKILL, -signal.SIGTERM)
        found = records(directory)
        assert len(found) > len(before)
        for key, features in before.items():
            np.testing.assert_array_equal(found[key], features)
        for key, features in found.items():
            np.testing.assert_allclose(features, expected[key], rtol=0, atol=1e-5)
        before = found
    process = started(source, directory, compiled_on_disk)
    process.join()
    assert process.exitcode == 0
    assert records(directory).keys() == expected.keys()
    print(f"\n{killed} kills, {begun} times from nothing")


def started(source, directory, cache):
    process = _FORKSERVER.Process(target=_fill, args=(source, directory, cache))
    process.start()
    return process


def records(directory):
    found = {}
    for path in directory.glob("*.safetensors"):
        tensors = load_file(path)
        found |= dict(zip(map(bytes, tensors["keys"]), tensors["features"], strict=True))
    return found


def _fill(source, directory, cache):
    """The child's part."""
    import os
    import sys

    import jax

    from florence_jax.training.cached_features import store as writer
    from train.features import main

    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    bytes_of_a_picture = 16 * 16 * 8 * 4
    writer.filling = functools.partial(
        writer.filling, file_bytes=ROWS_OF_A_FILE * bytes_of_a_picture
    )
    with open(os.devnull, "w") as sys.stderr, open(os.devnull, "w") as sys.stdout:
        tree = to_tree(frozen_config("unused", source, directory))
        recipe = cache / f"recipe-{os.getpid()}.json"
        recipe.write_text(json.dumps(tree))
        status = main(["--config", str(recipe), "--images-at-once", "4"])
    os._exit(status)
