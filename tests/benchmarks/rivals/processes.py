"""The measuring side of a worker: start it, ask it, keep it still while another one works."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Literal

from tests.benchmarks.malloc import TUNED
from tests.benchmarks.rivals.engines.engine import EngineInfo
from tests.benchmarks.rivals.settings import Settings

Malloc = Literal["tuned", "default"]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_SECONDS_TO_QUIT = 20


class WorkerError(Exception):
    """An engine failed, or its process died; the message is what it said last."""


def environment(settings: Settings, malloc: Malloc) -> dict[str, str]:
    """The same for every engine, but for what only one of them reads."""
    values = dict(os.environ)
    values.pop("GLIBC_TUNABLES", None)
    if malloc == "tuned":
        values["GLIBC_TUNABLES"] = TUNED
    values |= dict.fromkeys(_THREAD_VARIABLES, str(settings.threads))
    values["JAX_PLATFORMS"] = settings.platform
    # Several engines share the accelerator's memory.
    values["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    values["TORCHINDUCTOR_CACHE_DIR"] = str(Path(settings.cache) / "inductor")
    values["HF_HUB_OFFLINE"] = "1"
    return values


class Worker:
    """A process with one engine in it, stopped (SIGSTOP) whenever it is not asked anything.

    Spinning thread pools would otherwise take processors from the engine that is measured next.
    Entering it as a context waits until the engine has its weights.
    """

    def __init__(
        self,
        engine: EngineInfo,
        settings: Settings,
        variables: dict[str, str],
        *,
        limit: float | None = None,
    ):
        """Start the process.

        Args:
            engine, settings: what it is told.
            variables: its environment.
            limit: seconds for an answer, after which the process is ended; None waits for ever.
        """
        self._limit = limit
        # Open as long as the process.
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.rivals.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=variables,
        )
        hello = {
            "engine": dataclasses.asdict(engine),
            "settings": dataclasses.asdict(settings),
        }
        self._late = threading.Event()
        self._tell(hello)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Its answer.

        Raises:
            WorkerError: the engine raised an error, or its process died or took too long.
        """
        self._process.send_signal(signal.SIGCONT)
        self._tell(request)
        return self._answer()

    def close(self) -> None:
        """End the process; whatever it still does is lost."""
        self._process.kill()
        self._process.wait(_SECONDS_TO_QUIT)
        for stream in (self._process.stdin, self._process.stdout, self._log):
            # What a dead process was never told stays in the pipe's buffer.
            with contextlib.suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()

    def __enter__(self) -> Worker:
        try:
            self._answer()
        except WorkerError:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell(self, request: dict[str, Any]) -> None:
        requests = self._process.stdin
        assert requests is not None
        # Of a process that has ended, the answer is what it said last.
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=requests, flush=True)

    def _answer(self) -> dict[str, Any]:
        answers = self._process.stdout
        assert answers is not None
        timer = None if self._limit is None else threading.Timer(self._limit, self._end)
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            line = answers.readline()
        finally:
            if timer is not None:
                timer.cancel()
        if not line:
            if self._late.is_set():
                raise WorkerError(f"ended, as it took more than {self._limit:g} s")
            raise WorkerError(f"its process ended: {self._last_words()}")
        answer = json.loads(line)
        self._process.send_signal(signal.SIGSTOP)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _end(self) -> None:
        self._late.set()
        self._process.kill()

    def _last_words(self) -> str:
        code = self._process.wait(_SECONDS_TO_QUIT)
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return lines[-1] if lines else f"exit status {code}"
