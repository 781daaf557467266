"""A pool of worker processes that read images and may die while they do.

Each worker is a Python process without jax that is fed over a pipe. Nothing but the pipe is shared,
so a worker that is killed, hangs or runs out of memory does no other harm.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from florence_jax.processing.image import ImageError
from florence_jax.runtime.error_text import row_error_text

ATTEMPTS = 3
READY = b"ready"

# Where this package is imported from, for a checkout that is not installed.
_ROOT = str(Path(__file__).resolve().parents[2])
_PROGRAM = (
    "import sys; root = sys.argv[1]; root in sys.path or sys.path.insert(0, root); "
    "from florence_jax.batch.reader_pool import serve; serve()"
)


class WorkerDied(ImageError):
    """No worker survived the task."""


class NoWorkers(RuntimeError):
    """Worker processes do not start at all."""


class WorkerPool:
    """Runs functions in `count` worker processes, or on a thread of this one if `count` is 0.

    A function and its arguments must be picklable, and the function's module should import
    nothing heavy. Close the pool when it is no longer needed.
    """

    def __init__(self, count: int, *, time_limit: float = 120.0) -> None:
        """
        Args:
            count: worker processes.
            time_limit: seconds after which a task counts as hanging and its worker is killed.

        Raises:
            ValueError: `count` is negative.
        """
        if count < 0:
            raise ValueError(f"{count} worker processes: expected 0, for none, or more")
        self._count, self._time_limit = count, time_limit
        self._own = threading.local()
        self._lock = threading.Lock()
        self._alive: set[subprocess.Popen[bytes]] = set()
        self._closed = False
        # One thread a process, which waits for it; submitted tasks queue up here.
        self._threads = ThreadPoolExecutor(max(count, 1), thread_name_prefix="worker")

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run `function(*arguments)` in a worker.

        The future raises the function's exception, `WorkerDied` if three workers in turn died of it
        or ran into the time limit, or `NoWorkers` if none starts.
        """
        if self._count == 0:
            return self._threads.submit(function, *arguments)
        return self._threads.submit(self._run, function, arguments)

    def process_ids(self) -> list[int]:
        """The process ids of the running workers."""
        with self._lock:
            return [worker.pid for worker in self._alive]

    def close(self) -> None:
        """Kill the workers; tasks that have not begun never will."""
        with self._lock:
            self._closed = True
            alive = list(self._alive)
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in alive:
            self._bury(worker)

    def _run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        task = pickle.dumps((function, arguments), protocol=pickle.HIGHEST_PROTOCOL)
        reason = ""
        for _ in range(ATTEMPTS):
            worker = self._worker()
            try:
                succeeded, value = self._ask(worker, task)
            except (EOFError, OSError, pickle.UnpicklingError, TimeoutError) as error:
                if self._closed:
                    raise
                reason = self._bury(worker) if not isinstance(error, TimeoutError) else str(error)
                self._bury(worker)
                continue
            if not succeeded:
                raise value
            return value
        raise WorkerDied(
            f"the image could not be read: {ATTEMPTS} worker processes in turn {reason}. It may "
            "need more memory than there is: shrink it, or use fewer --workers"
        )

    def _worker(self) -> subprocess.Popen[bytes]:
        worker = getattr(self._own, "worker", None)
        if worker is None or worker.poll() is not None:
            worker = self._own.worker = self._started()
        return worker

    def _started(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._closed:
                raise EOFError("the pool is closed")
            worker = subprocess.Popen(
                # -P: the working directory is not searched for modules.
                [sys.executable, "-P", "-c", _PROGRAM, _ROOT],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # Ctrl-C is for this process, which finishes its blocks.
                process_group=0,
            )
            self._alive.add(worker)
        assert worker.stdout is not None
        if worker.stdout.read(len(READY)) != READY and not self._closed:
            raise NoWorkers(
                f"a worker process {self._bury(worker)} before it had anything to do: what it "
                "said is above. --workers 0 reads images without any"
            )
        return worker

    def _ask(self, worker: subprocess.Popen[bytes], task: bytes) -> tuple[bool, Any]:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(task)
        worker.stdin.flush()
        # Nothing is read ahead: a worker answers one task at a time.
        if not select.select([worker.stdout], [], [], self._time_limit)[0]:
            raise TimeoutError(f"took longer than {self._time_limit:g} s")
        return pickle.load(worker.stdout)

    def _bury(self, worker: subprocess.Popen[bytes]) -> str:
        """Kill the worker if it lives; returns how it ended."""
        worker.kill()
        status = worker.wait()
        for pipe in (worker.stdin, worker.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:  # what was still to be sent went with it
                continue
        with self._lock:
            self._alive.discard(worker)
        return f"died (signal {-status})" if status < 0 else f"died (status {status})"


def serve() -> None:
    """The program of one worker process: serve tasks from standard input until it ends.

    It writes `READY`; then pickled (function, arguments) come in on standard input and pickled
    (succeeded, value) go out on standard output, one after the other.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        # A scheduler signals every process; the parent knows what to finish first.
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # Text that a decoder prints must not get between the answers.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    tasks = sys.stdin.buffer
    try:
        answers.write(READY)
        answers.flush()
    except BrokenPipeError:  # the other end was killed meanwhile
        return
    while True:
        try:
            function, arguments = pickle.load(tasks)
        except EOFError:
            return
        try:
            reply = _pickled((True, function(*arguments)))
        except Exception as error:
            reply = _refusal(error)
        try:
            answers.write(reply)
            answers.flush()
        except BrokenPipeError:
            return


def _pickled(reply: tuple[bool, Any]) -> bytes:
    return pickle.dumps(reply, protocol=pickle.HIGHEST_PROTOCOL)


def _refusal(error: Exception) -> bytes:
    """The error, or its text if it cannot be unpickled elsewhere."""
    try:
        reply = _pickled((False, error))
        pickle.loads(reply)
    except Exception:
        return _pickled((False, ImageError(row_error_text(error))))
    return reply
