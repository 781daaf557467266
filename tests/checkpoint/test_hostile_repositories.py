"""Hostile repositories: each is refused in words, or loads without what makes it hostile."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra 'torch': .bin files are part of the attack")

from tests.checkpoint.hostile_repositories import REPOSITORIES, build

ROOT = Path(__file__).resolve().parents[2]
# One of each kind of attack.
QUICK = (
    "pickle_in_zip",
    "remote_code",
    "index_parent",
    "weights_link_out",
    "pipe_for_config",
    "endless_manifest",
    "giant_shape",
    "hostile_tokenizer",
)


def load_all(root, names):
    """Each repository and what loading it in another process did."""
    repositories = {name: build(name, root) for name in ("sound", *names)}
    paths = [str(repository.directory) for repository in repositories.values()]
    command = [sys.executable, "-m", "tests.checkpoint.hostile_watch", "directories", *paths]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=600, check=True
    )
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert [report["case"] for report in reports] == list(repositories)
    sound, *others = zip(repositories.values(), reports, strict=True)
    assert sound[1]["outcome"] == "loaded", sound[1]
    return sound[1], others


def check(root, names):
    sound, loads = load_all(root, names)
    refused = 0
    for repository, report in loads:
        assert not repository.trap.exists(), f"{report['case']} ran code or wrote outside"
        assert not report["escapes"], report
        assert report["peak_kb"] < 2 * sound["peak_kb"], report
        if repository.expected is None:
            assert report["outcome"] == "loaded", report
            continue
        refused += 1
        assert report["outcome"] in ("CheckpointError", "ConfigError", "ValueError"), report
        assert re.search(repository.expected, report["message"]), report
        assert report["message_length"] < 2_000, report
    print(f"\n{len(loads)} hostile repositories: {refused} refused, the others loaded harmless")


def test_one_of_each_kind(tmp_path):
    check(tmp_path, QUICK)


@pytest.mark.faults
def test_every_repository(tmp_path):
    assert len(REPOSITORIES) >= 20
    check(tmp_path, [name for name in REPOSITORIES if name != "sound"])


def test_the_payload_would_run(tmp_path):
    """The traps are armed: loaded without care, the pickle does create its folder."""
    import pickle

    repository = build("pickle_bare", tmp_path)
    pickle.loads((repository.directory / "pytorch_model.bin").read_bytes())
    assert repository.trap.exists()
