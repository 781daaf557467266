"""A destination is the old directory or the new one, whenever and however writing ends."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from florence_jax.checkpoint import CheckpointError, load_checkpoint
from florence_jax.checkpoint.native.save import save_checkpoint
from florence_jax.runtime import atomic_dir
from florence_jax.runtime.atomic_dir import DirectoryError, atomic_directory, leftovers, sync
from tests.checkpoint.generated import tiny_config, tiny_tensors, write_directory

ROOT = Path(__file__).resolve().parents[2]


def write(destination, text, **options):
    with atomic_directory(destination, **options) as new:
        (new / "config.json").write_text(text)
        (new / "d").mkdir()
        (new / "d" / "data").write_text(text)


def read(destination):
    texts = {(destination / name).read_text() for name in ("config.json", "d/data")}
    assert len(texts) == 1
    return texts.pop()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_creates_with_parents_and_replaces_when_told(tmp_path):
    destination = tmp_path / "a" / "b"
    write(destination, "old")
    with pytest.raises(DirectoryError, match="exists already: overwrite it"):
        write(destination, "new")
    assert read(destination) == "old"
    (destination / "stale").write_text("not in the new one")
    write(destination, "new", overwrite=True)
    assert read(destination) == "new"
    assert names(destination) == ["config.json", "d"]
    assert names(destination.parent) == ["b"]


def test_replaces_in_two_renames_where_one_is_not_to_be_had(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic_dir, "_exchange", lambda a, b: False)
    write(tmp_path / "x", "old")
    write(tmp_path / "x", "new", overwrite=True)
    assert read(tmp_path / "x") == "new"
    assert names(tmp_path) == ["x"]


def test_a_kill_between_the_two_renames_is_mended_by_the_next_run(tmp_path):
    write(tmp_path / ".x.replaced-0123", "old")
    with pytest.raises(DirectoryError, match="exists already"):
        write(tmp_path / "x", "new")
    assert read(tmp_path / "x") == "old"
    write(tmp_path / ".x.replaced-4567", "older")
    write(tmp_path / "x", "new", overwrite=True)
    assert read(tmp_path / "x") == "new"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError("no")])
def test_a_failure_changes_nothing(tmp_path, failure):
    def fail():
        with atomic_directory(tmp_path / "x", overwrite=True) as new:
            (new / "config.json").write_text("half")
            raise failure

    with pytest.raises((KeyboardInterrupt, ValueError)):
        fail()
    assert names(tmp_path) == []
    write(tmp_path / "x", "old")
    with pytest.raises((KeyboardInterrupt, ValueError)):
        fail()
    assert read(tmp_path / "x") == "old"
    assert names(tmp_path) == ["x"]


def test_only_a_checkpoint_or_an_empty_directory_is_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years")
    with pytest.raises(DirectoryError, match=r"has no config\.json.*holds thesis\.tex"):
        write(tmp_path / "home", "new", overwrite=True)
    assert names(tmp_path) == ["home"]
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", "new")
    (tmp_path / "file").write_text("")
    with pytest.raises(DirectoryError, match="is a file"):
        write(tmp_path / "file", "new", overwrite=True)


def test_a_symlink_stays_one(tmp_path):
    write(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "real") == "new"


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path):
    dead = tmp_path / ".[x].incomplete-dead"
    dead.mkdir()
    other = tmp_path / ".y.incomplete-dead"
    other.mkdir()
    with atomic_directory(tmp_path / "[x]") as first:
        assert not dead.exists()
        assert leftovers(tmp_path / "[x]") == []
        write(tmp_path / "[x]", "second")
        assert first.exists()
        (first / "config.json").write_text("first")
    assert (tmp_path / "[x]" / "config.json").read_text() == "first"
    assert names(tmp_path) == [".y.incomplete-dead", "[x]"]


@pytest.mark.parametrize(
    "step",
    [
        "florence_jax.runtime.atomic_dir.make_durable",
        "florence_jax.runtime.atomic_dir.sync",
        "florence_jax.checkpoint.native.save.write_arrays",
        "florence_jax.checkpoint.native.save.hash_files",
        "orbax.checkpoint.Checkpointer.save",
    ],
)
def test_a_process_that_dies_at_a_step_leaves_the_old_one(tmp_path, step):
    source = write_directory(tmp_path / "source", tiny_tensors(), tiny_config())
    config, params, _ = load_checkpoint(source)
    save_checkpoint(tmp_path / "x", config, params)
    before = (tmp_path / "x" / "manifest.json").read_bytes()
    code = (
        "import os\n"
        "from unittest import mock\n"
        "from florence_jax.checkpoint import load_checkpoint, save_checkpoint\n"
        f"mock.patch({step!r}, lambda *_, **__: os._exit(9)).start()\n"
        f"config, params, _ = load_checkpoint({str(source)!r}, 'bfloat16')\n"
        f"save_checkpoint({str(tmp_path / 'x')!r}, config, params, overwrite=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 9
    assert (tmp_path / "x" / "manifest.json").read_bytes() == before
    load_checkpoint(tmp_path / "x")
    assert len(leftovers(tmp_path / "x")) == 1
    save_checkpoint(tmp_path / "x", config, params, overwrite=True)
    assert names(tmp_path) == ["source", "x"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_reported_and_the_old_one_kept(tmp_path, monkeypatch, number):
    source = write_directory(tmp_path / "source", tiny_tensors(), tiny_config())
    config, params, _ = load_checkpoint(source)
    save_checkpoint(tmp_path / "x", config, params)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(number, "full")))
    with pytest.raises(CheckpointError, match=r"cannot write .*GB are free\); what was there is u"):
        save_checkpoint(tmp_path / "x", config, params, overwrite=True)
    with pytest.raises(CheckpointError, match="nothing was written"):
        save_checkpoint(tmp_path / "y", config, params)
    assert names(tmp_path) == ["source", "x"]
    load_checkpoint(tmp_path / "x")


def test_where_directories_cannot_be_synced_files_still_must_be(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EINVAL, "no")))
    sync(tmp_path)
    with pytest.raises(OSError, match="no"):
        sync(tmp_path / "file")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"):
        sync(tmp_path)


# TensorStore reports further failed writes to an event loop that Orbax has closed by then.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("foreseen", [True, False])
def test_a_disk_that_is_really_full(tmp_path, monkeypatch, foreseen):
    source = write_directory(tmp_path / "source", tiny_tensors(), tiny_config())
    config, params, _ = load_checkpoint(source, "bfloat16")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        save_checkpoint(disk / "x", config, params)
        before = (disk / "x" / "manifest.json").read_bytes()
        full = load_checkpoint(source).params
        if not foreseen:  # another process takes the room while Orbax writes
            usage = shutil.disk_usage(tmp_path)
            monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(CheckpointError, match=r"No space left on device .* is unchanged"):
            save_checkpoint(disk / "x", config, full, overwrite=True)
        assert (disk / "x" / "manifest.json").read_bytes() == before
        load_checkpoint(disk / "x")
        assert names(disk) == ["x"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
