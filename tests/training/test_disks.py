"""A disk that fills up or becomes read-only under a run: said at the next save, nothing lost.

pytest -m faults -s tests/training/test_disks.py
"""

import contextlib
import dataclasses
import re
import shutil
import signal
import subprocess

import pytest

from florence_jax.training.config import LoggingConfig
from florence_jax.training.loop import Outcome
from tests.training.runs import lines
from tests.training.storm import (
    EVERY,
    Log,
    Program,
    completed,
    finished,
    state_digest,
    storm_config,
)

pytestmark = pytest.mark.faults

STEPS = 90


def config_in(directory):
    """A run that writes everything that a run can write."""
    config = storm_config(directory, steps=STEPS)
    evaluation = dataclasses.replace(config.evaluation, images=1)
    return dataclasses.replace(config, evaluation=evaluation, logging=LoggingConfig(every=1))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, compiled_on_disk):
    directory = tmp_path_factory.mktemp("disks") / "undisturbed"
    completed(config_in(directory), compiled_on_disk)
    return state_digest(directory), Log(directory)


@pytest.fixture
def disk(tmp_path):
    """A file system of 64 MB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(mounted)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield mounted
    subprocess.run(["umount", "--lazy", str(mounted)], check=True)


@contextlib.contextmanager
def full(directory):
    """Not a byte is left on its disk."""
    ballast = directory.parent / "ballast"
    with ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))
    yield
    ballast.unlink()


@contextlib.contextmanager
def read_only(directory):
    # A mount of its own: that of the disk cannot change while a file is open for writing.
    for words in (["--bind", str(directory)], ["-o", "remount,bind,ro"]):
        subprocess.run(["mount", *words, str(directory)], check=True)
    yield
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


def failed_saves(program):
    """Steps whose checkpoints could not be saved, as the program said."""
    found = re.findall(r"the checkpoint of step (\d+) could not be saved in .*: .", program.said)
    return [int(step) for step in found]


@pytest.mark.parametrize("fault", [full, read_only])
def test_a_disk_that_recovers_costs_nothing(disk, undisturbed, compiled_on_disk, fault):
    expected, _ = undisturbed
    directory = disk / "run"
    program = Program(config_in(directory), compiled_on_disk)
    assert program.reaches(lambda: len(finished_names(directory)) > 1), program.said
    with fault(directory):
        step, before = lines(directory, "train")[-1]["step"], finished(directory)
        assert program.reaches(lambda: len(failed_saves(program)) > 1), program.said
        # The step that was logged last, one more that runs, one queued, and the next save.
        assert failed_saves(program)[0] <= step + 2 + EVERY
        assert finished(directory)[-len(before) :] == before
    assert program.status() == Outcome.DONE, program.said
    assert finished(directory)[-1] == STEPS
    assert state_digest(directory) == expected
    failed = failed_saves(program)
    print(f"\n{fault.__name__}: said at step {failed[0]}, {len(failed)} saves failed")


@pytest.mark.parametrize("fault", [full, read_only])
def test_a_disk_that_does_not_recover_ends_in_an_error_and_a_whole_checkpoint(
    disk, undisturbed, compiled_on_disk, fault
):
    expected, log = undisturbed
    directory = disk / "run"
    config = config_in(directory)
    program = Program(config, compiled_on_disk)
    assert program.reaches(lambda: len(finished_names(directory)) > 1), program.said
    with fault(directory):
        assert program.status() == Outcome.FAILED, program.said
        assert "error: the last checkpoint could not be saved" in program.said, program.said
        before = finished(directory)
        assert before
    completed(config, compiled_on_disk)
    assert [row["step"] for row in lines(directory, "resumed")] == [before[-1]]
    assert state_digest(directory) == expected
    log.compare(directory)


def test_files_that_cannot_grow_are_a_full_disk_without_a_disk(
    tmp_path, undisturbed, compiled_on_disk
):
    expected, _ = undisturbed
    directory = tmp_path / "run"
    config = config_in(directory)
    first = Program(config, compiled_on_disk)
    assert first.reaches(lambda: len(finished_names(directory)) > 1), first.said
    first.send(signal.SIGTERM)
    assert first.status() == Outcome.INTERRUPTED, first.said
    before = finished(directory)
    # The arrays' files are larger, the log is smaller.
    limited = Program(config, compiled_on_disk, largest_file=40_000)
    assert limited.status() == Outcome.FAILED, limited.said
    assert "could not be saved" in limited.said
    assert "Traceback" not in limited.said
    assert finished(directory) == before
    completed(config, compiled_on_disk)
    assert state_digest(directory) == expected


def finished_names(directory):
    return sorted(path.name for path in (directory / "checkpoints").glob("step_????????"))
