"""Files that are filled from front to back; full blocks are hashed and written meanwhile.

What goes to disk here is written once and not read again by this process, so it goes around the
page cache where the system can do that: a copy through the cache costs as much processor time as
the hash.
"""

import collections
import contextlib
import errno
import fcntl
import hashlib
import math
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from florence_jax.checkpoint.native.manifest import FileEntry

BLOCK_BYTES = 4 << 20
# So many blocks are in memory at once: enough to go on with while the disk takes a break.
_BLOCKS = 12
# Of what the disk takes without a copy: no sector is larger.
_ALIGNMENT = 4096


class WriterPool:
    """A thread that hashes and one that writes, and the memory that passes through them.

    The memory is used again: the system would clear every page of fresh memory first.
    """

    def __init__(self) -> None:
        self._hashing = ThreadPoolExecutor(1)
        self._writing = ThreadPoolExecutor(1)
        self._spare: list[np.ndarray] = []
        self._in_use: collections.deque[tuple[np.ndarray, list[Future[None]]]] = collections.deque()

    def __enter__(self) -> "WriterPool":
        return self

    def __exit__(self, *_: object) -> None:
        self._hashing.shutdown()
        self._writing.shutdown()

    def memory(self, nbytes: int) -> np.ndarray:
        """uint8[nbytes or more], aligned to a page; raises what the threads raised."""
        while self._in_use and (len(self._in_use) == _BLOCKS or self._oldest_is_done()):
            self._reclaim()
        # The one used last is the likeliest to be in the processor's cache.
        if self._spare and self._spare[-1].size >= nbytes:
            return self._spare.pop()
        return np.frombuffer(mmap.mmap(-1, max(nbytes, 2 * BLOCK_BYTES)), np.uint8)

    def hand_over(
        self, memory: np.ndarray, hash_it: Callable[[], None], write_it: Callable[[], None]
    ) -> None:
        """Have both done, then use `memory` again."""
        self._in_use.append(
            (memory, [self._hashing.submit(hash_it), self._writing.submit(write_it)])
        )

    def wait(self) -> None:
        """Until all is done; raises what was raised."""
        while self._in_use:
            self._reclaim()

    def _oldest_is_done(self) -> bool:
        return all(task.done() for task in self._in_use[0][1])

    def _reclaim(self) -> None:
        memory, tasks = self._in_use.popleft()
        for task in tasks:
            task.result()
        self._spare.append(memory)


class StreamWriter:
    """A new file, filled by `space` and `pad`; whole after `finish` and then `WriterPool.wait`."""

    def __init__(self, path: Path, writers: WriterPool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("xb", buffering=0)
        self._writers = writers
        self._digest = hashlib.sha256()
        self._memory = writers.memory(BLOCK_BYTES)
        self._start = 0  # of the memory, in the file
        self._filled = 0  # of the memory
        self._is_direct = self._set_direct(True)

    def __enter__(self) -> "StreamWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @contextlib.contextmanager
    def space(self, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[np.ndarray]:
        """The file's next bytes as an array, to be filled within the block."""
        end = self._filled + math.prod(shape) * dtype.itemsize
        if end > self._memory.size:
            self._move_to(self._writers.memory(end), first=0)
        yield self._memory[self._filled : end].view(dtype).reshape(shape)
        self._filled = end
        if end >= BLOCK_BYTES:
            self._hand_over(end // _ALIGNMENT * _ALIGNMENT)

    def pad(self, offset: int) -> None:
        """Put zeros up to `offset`."""
        with self.space((offset - self._start - self._filled,), np.dtype(np.uint8)) as array:
            array.fill(0)

    def finish(self) -> None:
        """Nothing more is put in."""
        self._hand_over(self._filled)

    def entry(self) -> FileEntry:
        """What was put in, and has been hashed and written."""
        return FileEntry(self._start, self._digest.hexdigest())

    def _hand_over(self, count: int) -> None:
        memory, content, start = self._memory, self._memory[:count].data, self._start
        self._start += count
        self._move_to(self._writers.memory(BLOCK_BYTES), first=count)
        self._writers.hand_over(
            memory, lambda: self._digest.update(content), lambda: self._write(content, start)
        )

    def _move_to(self, memory: np.ndarray, *, first: int) -> None:
        """Go on in `memory`, with the present content from `first` on."""
        rest = self._filled - first
        memory[:rest] = self._memory[first : self._filled]
        self._memory, self._filled = memory, rest

    def _write(self, content: memoryview, offset: int) -> None:
        while content:
            try:
                count = os.pwrite(self._file.fileno(), content, offset)
            except OSError as error:
                # The end of the file is not aligned, and some file systems take no write of this
                # kind at all.
                if error.errno != errno.EINVAL or not self._is_direct:
                    raise
                self._is_direct = self._set_direct(False)
                continue
            content, offset = content[count:], offset + count

    def _set_direct(self, wanted: bool) -> bool:
        """Have writes go around the page cache, or through it; do they go around it now?"""
        flag = getattr(os, "O_DIRECT", 0)  # Linux alone has it
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags | flag if wanted else flags & ~flag)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False  # the file system cannot
        return wanted and flag != 0
