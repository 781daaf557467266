"""40 SIGTERMs of a run, ten in each of its phases: each is saved, and the end is the same.

pytest -m faults -s tests/training/test_terminations.py
"""

import collections
import os
import random
import re
import signal
import time

import pytest

from florence_jax.training.loop import Outcome
from tests.training.runs import lines
from tests.training.storm import (
    EVALUATE,
    Log,
    Program,
    completed,
    finished,
    state_digest,
    storm_config,
)

pytestmark = pytest.mark.faults

TERMINATIONS = int(os.environ.get("STORM_TERMINATIONS", "40"))
PHASES = ("compiling", "a step", "a save", "an evaluation")
STEPS = 48


def test_every_termination_is_saved_whatever_the_run_does(tmp_path, compiled_on_disk):
    begun = time.monotonic()
    undisturbed = completed(storm_config(tmp_path / "undisturbed", steps=STEPS), compiled_on_disk)
    expected, log = state_digest(undisturbed), Log(undisturbed)
    rng = random.Random(0)
    done: collections.Counter[str] = collections.Counter()
    lives, directory, newest = 0, tmp_path / "life0", 0
    while done.total() < TERMINATIONS:
        number = done.total()
        wanted = PHASES[number % len(PHASES)]
        config = storm_config(directory, steps=STEPS)
        # Nothing is cached for a run that is to compile.
        cache = tmp_path / f"empty{number}" if wanted == "compiling" else compiled_on_disk
        program = Program(config, cache)
        reached = program.reaches(in_phase(wanted, directory, newest))
        time.sleep(rng.uniform(0, 3.0 if wanted == "compiling" else 0.3))
        program.send(signal.SIGTERM)
        status, said = program.status(), program.said
        steps = finished(directory)
        saved = re.search(r"interrupted and saved at step (\d+)", said)
        if saved:
            assert status == Outcome.INTERRUPTED, said
            assert int(saved[1]) == steps[-1]
            # Not one step that was logged has to be done again.
            assert steps[-1] >= max([0, *(row["step"] for row in lines(directory, "train"))])
            assert reached
            done[wanted] += 1
        else:
            # It was told so late that it came to its end.
            assert status == Outcome.DONE, said
            assert steps[-1] == STEPS
        assert steps[-1] >= newest
        newest = steps[-1]
        if newest == STEPS and not saved:
            assert state_digest(directory) == expected
            log.compare(directory)
            lives += 1
            directory, newest = tmp_path / f"life{lives}", 0
    completed(storm_config(directory, steps=STEPS), compiled_on_disk)
    assert state_digest(directory) == expected
    log.compare(directory)
    minutes = (time.monotonic() - begun) / 60
    print(f"\n{done.total()} SIGTERMs over {lives + 1} runs, {minutes:.0f} min: {dict(done)}")
    print(f"{log.replayed} steps computed again, {log.compared} lines compared")
    assert log.replayed == 0


def in_phase(wanted, directory, newest):
    """Whether the run does now what is wanted, seen from outside."""
    before = len(lines(directory, "train"))

    def reached():
        if wanted == "compiling":
            # A resumed run says so right before it compiles its step, a new one saves what is
            # frozen.
            resumed = [row["step"] for row in lines(directory, "resumed")]
            return (directory / "frozen/step_00000000").is_dir() and newest in (0, *resumed[-1:])
        rows = lines(directory, "train")[before:]
        if wanted == "a save":
            return bool(rows) and any((directory / "checkpoints").glob("*.saving"))
        if wanted == "an evaluation":
            return bool(rows) and (rows[-1]["step"] % EVALUATE == 0 or rows[-1]["step"] == STEPS)
        return len(rows) > 2

    return reached
