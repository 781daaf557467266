"""SIGTERM in every phase of a run: it is saved, and goes on to the same end."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests.train.runs import a_config, final_state, lines, steps
from train.loop import Outcome, train
from train.settings import to_tree


@pytest.fixture(scope="module")
def expected(tmp_path_factory, compiled_on_disk):
    directory = tmp_path_factory.mktemp("uninterrupted")
    assert train(a_config(directory)) is Outcome.DONE
    return final_state(directory)


def started(directory, tmp_path, cache, **settings):
    """The program as a process of its own; `cache` None compiles everything anew."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(to_tree(a_config(directory, **settings))))
    environment = os.environ | {"FLORENCE_JAX_COMPILATION_CACHE": "off"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    if cache is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    # As this process computes: tests set the precision for themselves.
    environment["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
    return subprocess.Popen(
        [sys.executable, "-m", "train.main", "--config", str(recipe)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def terminated(process, reached, patience=240.0):
    """Send SIGTERM once `reached()`; (exit status, what it said)."""
    until = time.monotonic() + patience
    try:
        while not reached():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < until, "the phase was not reached"
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=patience)
    finally:
        process.kill()
    return process.returncode, said


def goes_on_as_if_nothing_had_been(directory, expected):
    assert train(a_config(directory)) is Outcome.DONE
    assert final_state(directory) == expected


def test_while_compiling(tmp_path, expected):
    # Nothing is cached, so what follows the frozen parameters is 20 seconds of XLA.
    directory = tmp_path / "run"
    process = started(directory, tmp_path, None)
    frozen = directory / "frozen" / "step_00000000"
    status, said = terminated(process, lambda: frozen.is_dir() and (time.sleep(2) or True))
    assert status == Outcome.INTERRUPTED, said
    assert "interrupted and saved at step 0" in said
    assert steps(directory) == [0]
    goes_on_as_if_nothing_had_been(directory, expected)


@pytest.mark.faults
def test_between_steps(tmp_path, expected, compiled_on_disk):
    # So many steps that it cannot end before it is told to.
    directory = tmp_path / "run"
    process = started(directory, tmp_path, compiled_on_disk, steps=100_000)
    status, said = terminated(process, lambda: bool(lines(directory, "train")))
    assert status == Outcome.INTERRUPTED, said
    assert f"interrupted and saved at step {steps(directory)[-1]}" in said
    if steps(directory)[-1] < 5:
        goes_on_as_if_nothing_had_been(directory, expected)


@pytest.mark.faults
def test_while_evaluating(tmp_path, expected, compiled_on_disk):
    # The evaluation after step 4 generates, which is compiled for the first time.
    directory = tmp_path / "run"
    process = started(directory, tmp_path, compiled_on_disk)
    status, said = terminated(process, lambda: 4 in [r["step"] for r in lines(directory, "train")])
    assert status == Outcome.INTERRUPTED, said
    assert "interrupted and saved at step 4" in said
    assert not lines(directory, "evaluation")
    goes_on_as_if_nothing_had_been(directory, expected)
    assert [row["step"] for row in lines(directory, "evaluation")] == [4, 5]
