"""100 SIGKILLs of a run whose number of workers changes at every start: exactly one row each.

Runs for some minutes on two idle cores, a quarter of an hour on busy ones:
`pytest -m faults -s tests/batch/test_storm.py`.
"""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from florence_jax.batch.blocks import is_block_name
from florence_jax.batch.verify import verify_output
from tests.batch.storm_run import BLOCK, main

SEED = 20261122
INPUTS, KILLS = 10_000, 100
CORRUPT_SHARE = 0.03
# Seconds, on a machine that does much else.
LONGEST_START = 900


def write_inputs(folder, rng):
    """JSON lines that name 10,000 pictures, of which some are missing, cut, rubbish or bombs."""
    (folder / "pictures").mkdir()
    pixels = np.random.default_rng(SEED)
    corrupt = set()
    with (folder / "rows.jsonl").open("w") as rows:
        for number in range(INPUTS):
            path = folder / "pictures" / f"{number:05}.png"
            fields = {"id": f"input-{number}", "image": f"pictures/{path.name}", "task": "<OCR>"}
            Image.fromarray(pixels.integers(0, 255, (12, 16, 3), np.uint8)).save(path)
            line = json.dumps(fields)
            if rng.random() < CORRUPT_SHARE:
                corrupt.add(number)
                line = _damage(rng.randrange(5), path, line)
            rows.write(f"{line}\n")
    return corrupt


def _damage(kind, path, line):
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == 2:
        path.write_bytes(random.Random(str(path)).randbytes(100))
    elif kind == 3:
        bomb = path.with_name("bomb.png")
        if not bomb.exists():
            Image.new("1", (30_000, 30_000)).save(bomb)
        path.unlink()
        os.link(bomb, path)
    else:
        return line.replace('"image": "pictures/', '"image": "../')
    return line


@pytest.fixture(scope="module")
def starts():
    """Processes of their own that need not import jax once more for each of a hundred lives."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.batch.storm_run"])
    return context


def start(context, folder, output, workers):
    process = context.Process(target=main, args=(folder, output, workers))
    process.start()
    return process


def finished(output):
    return sum(is_block_name(path.name) for path in output.iterdir()) if output.exists() else 0


@pytest.mark.faults
def test_a_hundred_kills_lose_no_row_and_double_none(starts, tmp_path):
    rng = random.Random(SEED)
    corrupt = write_inputs(tmp_path, rng)
    output, began = tmp_path / "out", time.monotonic()
    blocks_at_kill, workers_killed = [], 0
    for kill in range(KILLS):
        process = start(starts, tmp_path, output, rng.randint(0, 4))
        before, deadline = finished(output), time.monotonic() + LONGEST_START
        # From the moment the run does work, or, now and then, while it is still starting.
        early = rng.random() < 0.15
        while not early and finished(output) == before and process.is_alive():
            assert time.monotonic() < deadline, f"no block after {LONGEST_START} s, kill {kill}"
            time.sleep(0.02)
        # A fast machine must not be done before the last kill, though blocks come in bursts.
        ahead = finished(output) * KILLS * BLOCK > 0.7 * INPUTS * kill
        longest = (1.0 if ahead else 3.0) if early else (0.02 if ahead else 0.4)
        time.sleep(rng.random() * longest)
        if rng.random() < 0.3:
            workers_killed += _kill_a_worker(process.pid, rng)
        assert process.is_alive(), f"ended before kill {kill} with status {process.exitcode}"
        process.kill()
        process.join()
        blocks_at_kill.append(finished(output))
        print(f"kill {kill + 1}: {blocks_at_kill[-1]} blocks", flush=True)
    report = verify_output(output)
    assert not report.problems, report.describe()
    assert report.missing, "the storm must end before the run does"
    last = start(starts, tmp_path, output, 2)
    last.join()
    assert last.exitcode == 0

    report = verify_output(output)
    assert report.is_complete, report.describe()
    rows = [
        json.loads(line)
        for path in sorted(output.glob("block-*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert [row["id"] for row in rows] == [f"input-{number}" for number in range(INPUTS)]
    assert {number for number, row in enumerate(rows) if "error" in row} == corrupt
    assert all(len(row["answers"]) == 1 for row in rows if "error" not in row)
    assert not list(output.glob(".leases"))
    print(
        f"\nseed {SEED}: {KILLS} SIGKILLs and {workers_killed} of workers over {INPUTS} inputs, "
        f"{len(corrupt)} corrupt, in {time.monotonic() - began:.0f} s; blocks finished at the "
        f"kills {blocks_at_kill[0]} ... {blocks_at_kill[-1]}; 0 rows missing, 0 twice"
    )


def _kill_a_worker(parent, rng):
    """Kill a worker process of the run first; how many were."""
    try:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        children = [*children, *_children_of_threads(parent)]
    except FileNotFoundError:
        return 0
    if not children:
        return 0
    try:
        os.kill(int(rng.choice(sorted(set(children)))), signal.SIGKILL)
    except ProcessLookupError:
        return 0
    time.sleep(0.1)
    return 1


def _children_of_threads(parent):
    for task in Path(f"/proc/{parent}/task").iterdir():
        yield from (task / "children").read_text().split()
