"""200 SIGKILLs of a run, at instants drawn from fixed seeds: nothing that was finished is lost.

pytest -m faults -s tests/training/test_kills.py
"""

import collections
import os
import random
import signal
import time

import pytest

from florence_jax.training.loop import Outcome
from tests.training.runs import lines
from tests.training.storm import Log, Program, completed, finished, state_digest, storm_config

pytestmark = pytest.mark.faults

SEEDS, KILLS = range(4), int(os.environ.get("STORM_KILLS", "50"))
STEPS = 48


@pytest.mark.parametrize("seed", SEEDS)
def test_no_kill_loses_a_finished_step_or_changes_a_bit(tmp_path, compiled_on_disk, seed):
    begun = time.monotonic()
    undisturbed = completed(storm_config(tmp_path / "undisturbed", steps=STEPS), compiled_on_disk)
    expected, log = state_digest(undisturbed), Log(undisturbed)
    started, stepping = timed(storm_config(tmp_path / "timed", steps=STEPS), compiled_on_disk)
    rng = random.Random(seed)
    seen: collections.Counter[str] = collections.Counter()
    lives = 0
    while seen.total() < KILLS:
        directory = tmp_path / f"life{lives}"
        config, newest = storm_config(directory, steps=STEPS), 0
        ended = False
        while not ended and seen.total() < KILLS:
            before, resumed = (len(lines(directory, kind)) for kind in ("train", "resumed"))
            program = Program(config, compiled_on_disk)
            # A fifth anywhere before the first step, where a restart spends most of its time, the
            # others anywhere after it.
            if rng.random() < 0.2:
                time.sleep(rng.uniform(0, started))
            else:
                program.reaches(lambda d=directory, n=before: len(lines(d, "train")) > n)
                time.sleep(rng.uniform(0, 0.7 * stepping))
            program.send(signal.SIGKILL)
            status = program.status()
            assert status in (Outcome.DONE, -signal.SIGKILL), program.said
            # What this process went on from is what the kill before it had left.
            for row in lines(directory, "resumed")[resumed:]:
                assert row["step"] == newest
            steps = finished(directory)
            assert (steps or [0])[-1] >= newest, f"step {newest} is lost, there are {steps}"
            newest = (steps or [0])[-1]
            ended = status == Outcome.DONE
            if not ended:
                seen[phase(directory, before)] += 1
        if not ended:
            completed(config, compiled_on_disk)
        assert finished(directory)[-1] == STEPS
        assert state_digest(directory) == expected
        log.compare(directory)
        lives += 1
    minutes = (time.monotonic() - begun) / 60
    print(f"\n{seen.total()} SIGKILLs over {lives} runs, {minutes:.0f} min: {dict(seen)}")
    print(f"{log.replayed} steps computed again, {log.compared} lines compared")
    assert seen["during a save"] > KILLS // 10


def timed(config, cache):
    """Seconds before the first step of a run, and from there to its end."""
    begun = time.monotonic()
    program = Program(config, cache)
    assert program.reaches(lambda: bool(lines(config.directory, "train"))), program.said
    first = time.monotonic()
    assert program.status() == Outcome.DONE, program.said
    return first - begun, time.monotonic() - first


def phase(directory, before):
    """What a kill interrupted, by what it left."""
    names = [path.name for path in (directory / "checkpoints").glob("*.saving*")]
    if any(name.endswith("-old") for name in names):
        return "while an old one was removed"
    if names:
        return "during a save"
    rows = lines(directory, "train")
    if len(rows) == before:
        return "before the first step"
    if rows[-1]["step"] == STEPS:
        return "evaluating or exporting at the end"
    return "between saves"
