"""Real processes on this machine, over gloo: the same run as one process's, also after a death."""

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from florence_jax.training.checkpointing.manager import Checkpoints, named_leaves
from florence_jax.training.prepare import build_training
from florence_jax.training.pretrained import read_pretrained
from florence_jax.training.state import drop_frozen
from tests.sharding.equality import distance
from tests.sharding.process import config_of, run
from tests.sharding.subprocesses import ROOT, environment
from tests.training.runs import lines

STEPS = 4


def start(directory, mesh, processes, *, cache, devices=1, steps=STEPS, pause=0.0):
    """Processes that train into `directory` together."""
    directory.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    peers = [[coordinator, processes, number] for number in range(processes)]
    more = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    running = []
    for number, peer in enumerate(peers):
        command = [sys.executable, "-m", "tests.sharding.process"]
        command += [str(directory), mesh, str(steps), str(pause)]
        command += map(str, peer) if processes > 1 else ()
        with (directory / f"stderr_{number}").open("w") as errors:
            running.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment(devices, **more),
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                )
            )
    return running


def finish(directory, *arguments, **options):
    running = start(directory, *arguments, **options)
    with ended(running):
        statuses = [process.wait(timeout=900) for process in running]
    texts = [(directory / f"stderr_{n}").read_text()[-3000:] for n in range(len(running))]
    assert statuses == [0] * len(running), "\n".join(texts)


@contextlib.contextmanager
def ended(running):
    try:
        yield
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()


def losses(directory):
    return {row["step"]: (row["loss"], row["grad_norm"]) for row in lines(directory, "train")}


def rows(directory, processes):
    """The ids of each step's batch, the processes' shares in order."""
    parts = [
        [json.loads(line) for line in (directory / f"rows_{n}.jsonl").read_text().splitlines()]
        for n in range(processes)
    ]
    return [list(itertools.chain(*shares)) for shares in zip(*parts, strict=True)]


def final_state(directory):
    """The newest checkpoint, on this process's one device."""
    training = build_training(
        config_of(directory, "", STEPS), read_pretrained(directory / "processor")
    )
    abstract = drop_frozen(training.abstract_state())
    with Checkpoints(directory / "checkpoints", training.config.checkpoint, writes=False) as kept:
        state, _ = kept.restore(abstract)
    return {name: np.asarray(leaf) for name, leaf in named_leaves(state).items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    directory = tmp_path_factory.mktemp("alone")
    assert run(str(directory), "", STEPS) == 0
    return directory


def check_equal(directory, processes, alone):
    assert rows(directory, processes) == rows(alone, 1)
    ours, theirs = losses(directory), losses(alone)
    assert ours.keys() == theirs.keys() == set(range(1, STEPS + 1))
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-6)
    ours, theirs = final_state(directory), final_state(alone)
    # Parameters, moments and averages alike.
    for kind in ("trainable", "mu", "nu", "ema"):
        mine, other = (
            {name: leaf for name, leaf in state.items() if kind in name.split(".")}
            for state in (ours, theirs)
        )
        assert mine.keys() == other.keys() != set()
        assert distance(mine, other) < 2e-6, kind


def test_two_processes_train_as_one_does(alone, tmp_path, compiled_on_disk):
    finish(tmp_path / "run", "data=2", 2, cache=compiled_on_disk)
    check_equal(tmp_path / "run", 2, alone)


@pytest.mark.slow
def test_four_processes_of_two_devices_train_as_one_does(alone, tmp_path, compiled_on_disk):
    mesh = "data=2,fsdp=2,tensor=2"
    finish(tmp_path / "run", mesh, 4, devices=2, cache=compiled_on_disk)
    # Two devices of a process share their rows: `tensor` is within a process.
    check_equal(tmp_path / "run", 4, alone)


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_the_restart_is_exact(tmp_path, compiled_on_disk):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(whole, "data=2", 2, cache=compiled_on_disk)
    running = start(broken, "data=2", 2, cache=compiled_on_disk, pause=2.0)
    with ended(running):
        while not (broken / "checkpoints" / "step_00000002").is_dir():
            assert [process.poll() for process in running] == [None, None]
            time.sleep(0.1)
        os.kill(running[1].pid, signal.SIGKILL)
        killed = time.monotonic()
        status = running[0].wait(timeout=60)
    assert time.monotonic() - killed < 30
    assert status != 0
    assert "another process of the run ended" in (broken / "stderr_0").read_text()
    finish(broken, "data=2", 2, cache=compiled_on_disk)
    ours, theirs = final_state(broken), final_state(whole)
    assert {k: v.tobytes() for k, v in ours.items()} == {k: v.tobytes() for k, v in theirs.items()}
    # The steps since the checkpoint were taken again, with the same rows.
    assert rows(broken, 2)[-2:] == rows(whole, 2)[-2:]
