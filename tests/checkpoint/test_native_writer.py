"""Files that are filled piece by piece hold every byte in its place, however the system writes."""

import errno
import fcntl
import hashlib
import os

import numpy as np
import pytest

from florence_jax.checkpoint.native import block_file
from florence_jax.checkpoint.native.block_file import BLOCK_BYTES, StreamWriter, WriterPool

# Below, at and above a block, and none of them a whole number of sectors but the third.
SIZES = (3, 70_000, BLOCK_BYTES, 1, 3 * BLOCK_BYTES + 5, BLOCK_BYTES - 1, 12)


def write(path):
    """Write the sizes above with gaps between them; gives what the file has to hold."""
    rng, expected = np.random.default_rng(0), bytearray()
    with WriterPool() as writers, StreamWriter(path, writers) as file:
        for size in SIZES:
            content = rng.integers(0, 256, size, np.uint8)
            expected += bytes(-len(expected) % 64)
            file.pad(len(expected))
            expected += content.tobytes()
            with file.space((size,), np.dtype(np.uint8)) as array:
                array[:] = content
        file.finish()
        writers.wait()
        entry = file.entry()
    assert entry.bytes == len(expected)
    assert entry.sha256 == hashlib.sha256(expected).hexdigest()
    return bytes(expected)


def test_what_is_put_in_is_in_the_file(tmp_path):
    assert write(tmp_path / "file") == (tmp_path / "file").read_bytes()


def test_more_blocks_than_memory_for_them(tmp_path, monkeypatch):
    monkeypatch.setattr(block_file, "_BLOCKS", 1)
    assert write(tmp_path / "file") == (tmp_path / "file").read_bytes()


def test_a_file_system_that_refuses_to_go_around_the_cache(tmp_path, monkeypatch):
    def refuse(file, command, *argument):
        if command == fcntl.F_SETFL:
            raise OSError(errno.EINVAL, "Invalid argument")
        return 0

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    assert write(tmp_path / "file") == (tmp_path / "file").read_bytes()


def test_a_file_system_that_refuses_such_writes_only(tmp_path, monkeypatch):
    direct, pwrite = getattr(os, "O_DIRECT", 0), os.pwrite
    refused = []

    def refuse(descriptor, content, offset):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & direct:
            refused.append(offset)
            raise OSError(errno.EINVAL, "Invalid argument")
        return pwrite(descriptor, content, offset)

    monkeypatch.setattr(os, "pwrite", refuse)
    assert write(tmp_path / "file") == (tmp_path / "file").read_bytes()
    assert len(refused) <= 1


def test_short_writes_are_continued(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda descriptor, content, offset: pwrite(
            descriptor, content[:1_000_001], offset
        )
    )  # fmt: skip
    assert write(tmp_path / "file") == (tmp_path / "file").read_bytes()


def test_a_write_that_fails_is_raised(tmp_path, monkeypatch):
    def fail(descriptor, content, offset):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "file")
