"""Mutated safetensors headers, index files and configs: an error that names the fault, or a sound
model; never a crash, a hang, a file outside the directory, or memory without bounds."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUICK, FULL = 150, 2_000
# Two processes, each with its share of the cases.
WORKERS = 2
# An error is read by a person: no mutation may fill the screen.
LONGEST_MESSAGE = 10_000


def run_cases(root, first, last):
    """Every case's report, in order; a worker that dies is an error by itself."""
    bounds = [first + (last - first) * worker // WORKERS for worker in range(WORKERS + 1)]
    workers = []
    for worker in range(WORKERS):
        arguments = ["mutations", root / str(worker), bounds[worker], bounds[worker + 1]]
        command = [sys.executable, "-m", "tests.checkpoint.hostile_watch", *map(str, arguments)]
        output = (root / f"{worker}.jsonl").open("w+")
        workers.append((subprocess.Popen(command, cwd=ROOT, stdout=output), output))
    reports = []
    for process, output in workers:
        assert process.wait() == 0, f"a worker died after {len(reports)} cases"
        output.seek(0)
        reports.append([json.loads(line) for line in output])
        output.close()
    return reports


def check(reports, count):
    found = Counter()
    for valid, *cases in reports:
        assert valid["outcome"] == "loaded", valid
        assert not valid["escapes"], valid
        for case in cases:
            found[case["kind"], case["outcome"]] += 1
            assert case["outcome"] in ("loaded", "CheckpointError", "ConfigError"), case
            assert not case["escapes"], case
            assert case["message_length"] < LONGEST_MESSAGE, case
            assert case["peak_kb"] < 2 * valid["peak_kb"], case
    assert found.total() == count
    refused = count - sum(n for (_, outcome), n in found.items() if outcome == "loaded")
    print(f"\n{count} mutations: {refused} refused, {count - refused} harmless and loaded")
    for (kind, outcome), n in sorted(found.items()):
        print(f"  {kind:8}{outcome:18}{n}")
    # The mutations do bite, in every kind of file.
    assert refused > count / 2
    assert {kind for kind, outcome in found if outcome == "CheckpointError"} == {
        "header",
        "index",
        "config",
    }


def test_a_sample_of_the_mutations(tmp_path):
    check(run_cases(tmp_path, 0, QUICK), QUICK)


@pytest.mark.faults
def test_every_mutation(tmp_path):
    check(run_cases(tmp_path, 0, FULL), FULL)
