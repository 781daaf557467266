"""Files that are there as a whole or not at all."""

import errno
import os
import time

import pytest

from florence_jax.runtime import atomic_file
from florence_jax.runtime.atomic_file import (
    atomic_write,
    check_writable,
    file_name,
    remove_leftovers,
)
from florence_jax.runtime.jsonl import LineWriter


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_start_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("old\n")
    with pytest.raises(ValueError, match="no model"), LineWriter(path, overwrite=True):
        raise ValueError("no model")
    assert path.read_text() == "old\n"
    with LineWriter(path, overwrite=True) as file:
        assert path.read_text() == "old\n"
        file.write("new")
        assert path.read_text() == "new\n", "each line is there when it is written"
        file.write("newer")
    assert path.read_text() == "new\nnewer\n"
    assert names(tmp_path) == ["rows.jsonl"]


def test_a_start_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="no model"), LineWriter(tmp_path / "a", overwrite=False):
        raise ValueError("no model")
    assert names(tmp_path) == []
    with LineWriter(tmp_path / "a", overwrite=False) as file:
        (tmp_path / "a").write_text("of another command\n")
        with pytest.raises(FileExistsError, match="exists already: pass --overwrite"):
            file.write("ours")
    assert (tmp_path / "a").read_text() == "of another command\n"


def test_links_keep_their_place_and_modes_stay(tmp_path):
    (tmp_path / "real").write_text("old\n")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    with LineWriter(tmp_path / "link", overwrite=True) as file:
        file.write("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new\n"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640


def test_devices_are_written_to_and_stay(tmp_path):
    with LineWriter("/dev/null", overwrite=False) as file:
        file.write("row")
    assert not os.path.isfile("/dev/null")
    with pytest.raises(IsADirectoryError, match="is a directory"):
        LineWriter(tmp_path, overwrite=True)


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    path.write_text("old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic_file.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*report\.json"):
        atomic_write(path, "new")
    assert (path.read_text(), names(tmp_path)) == ("old", ["report.json"])


def test_a_file_name_that_is_no_utf8_is_written_as_an_escape(tmp_path):
    atomic_write(tmp_path / "page", os.fsdecode(b"caf\xe9.png"))
    assert (tmp_path / "page").read_text() == "caf\\udce9.png"


def test_long_names_are_cut_and_stay_apart():
    one, other = (file_name("名" * 90 + end, ".od.png") for end in "ab")
    assert one != other
    assert all(len(os.fsencode(name)) <= 240 and name.endswith(".od.png") for name in (one, other))
    assert file_name("a", ".od.png") == "a.od.png"


def test_a_directory_that_takes_no_file_is_named(tmp_path):
    check_writable(tmp_path)
    assert names(tmp_path) == []
    with pytest.raises(FileNotFoundError, match="missing"):
        check_writable(tmp_path / "missing")


def test_leftovers_are_judged_by_the_file_systems_clock(tmp_path, monkeypatch):
    """A host whose clock is a day ahead removes nothing of a writer that is alive."""
    fresh, old = tmp_path / ".incomplete-fresh", tmp_path / ".incomplete-old"
    fresh.touch()
    old.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    ahead = time.time() + 86400
    monkeypatch.setattr(time, "time", lambda: ahead)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".incomplete-fresh"]
