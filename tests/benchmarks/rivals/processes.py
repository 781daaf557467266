"""The measuring side of a worker: start it, ask it, keep it still while another one works."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
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
    """

    def __init__(self, engine: EngineInfo, settings: Settings, variables: dict[str, str]):
        """Start the process and wait until the engine has its weights.

        Raises:
            WorkerError: it has not.
        """
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
        try:
            self._ask(hello)
        except WorkerError:
            self.close()
            raise

    def ask(self, **request: Any) -> dict[str, Any]:
        """Its answer.

        Raises:
            WorkerError: the engine raised an error, or its process died.
        """
        self._process.send_signal(signal.SIGCONT)
        return self._ask(request)

    def close(self) -> None:
        """End the process; whatever it still does is lost."""
        self._process.kill()
        self._process.wait(_SECONDS_TO_QUIT)
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        try:
            print(json.dumps(request), file=requests, flush=True)
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"its process ended: {self._last_words()}")
        answer = json.loads(line)
        self._process.send_signal(signal.SIGSTOP)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _last_words(self) -> str:
        code = self._process.wait(_SECONDS_TO_QUIT)
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return lines[-1] if lines else f"exit status {code}"
