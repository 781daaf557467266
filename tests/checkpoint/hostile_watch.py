"""Load untrusted checkpoints in a process of its own, and tell what each load did.

    python -m tests.checkpoint.hostile_watch mutations ROOT FIRST LAST
    python -m tests.checkpoint.hostile_watch directories DIRECTORY...

Prints one JSON object a case. Each has ten seconds of processor time, and a minute in which to wait
for something that never comes; every file opened, process started, connection made and file
changed from Python while it loads is recorded.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SECONDS = 10
# Much more: a busy machine is no fault of the checkpoint.
_WAIT_SECONDS = 60
_MAX_ADDRESS_SPACE = 16 << 30
# Beginnings of audit events that loading a checkpoint has no use for.
_FORBIDDEN = (
    "os.exec", "os.fork", "os.posix_spawn", "os.system", "subprocess.", "pty.", "os.remove",
    "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate",
    "shutil.", "socket.connect", "socket.bind", "urllib.", "ctypes.dlopen", "webbrowser.",
)  # fmt: skip


class Hang(BaseException):
    """No Exception: nothing that handles errors may swallow it."""


class _Watch:
    """What Python's audit events say about the load under way."""

    def __init__(self) -> None:
        self.inside: Path | None = None
        self.seen: list[str] = []
        # Lazy imports read the installation.
        own = [sys.prefix, sys.base_prefix, *sys.path, "/proc", "/sys", "/usr", "/dev/urandom"]
        self.allowed = tuple(os.path.realpath(path) for path in own if path)
        sys.addaudithook(self._hook)

    @contextmanager
    def over(self, directory: Path) -> Iterator[None]:
        self.inside, self.seen = directory.resolve(), []
        try:
            yield
        finally:
            self.inside = None

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.inside is None:
            return
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, str | bytes | os.PathLike):
                self._opened(os.fsdecode(path), str(mode), int(flags or 0))
        elif event.startswith(_FORBIDDEN):
            self.seen.append(f"{event}{arguments!r}"[:300])

    def _opened(self, path: str, mode: str, flags: int) -> None:
        inside, self.inside = self.inside, None  # realpath must not audit itself
        try:
            real = os.path.realpath(path)
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and real != os.devnull:
                self.seen.append(f"write {real}")
            elif not Path(real).is_relative_to(inside) and not real.startswith(self.allowed):
                self.seen.append(f"read {real}")
        finally:
            self.inside = inside


def _watched(watch: _Watch, directory: Path, load: Callable[[], Any]) -> dict[str, Any]:
    hangs = []

    def hang(*_: Any) -> None:
        hangs.append("hang")  # in case a callback swallows what is raised here
        raise Hang

    for number, timer, seconds in (
        (signal.SIGALRM, signal.ITIMER_REAL, _WAIT_SECONDS),
        (signal.SIGPROF, signal.ITIMER_PROF, _SECONDS),
    ):
        signal.signal(number, hang)
        signal.setitimer(timer, seconds)
    started = time.process_time()
    outcome, message = "loaded", ""
    try:
        with watch.over(directory):
            load()
    except BaseException as error:
        outcome, message = type(error).__name__, str(error)
        if not isinstance(error, ValueError):
            message += "\n" + "".join(traceback.format_exception(error)[-3:])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {
        "outcome": "Hang" if hangs else outcome,
        "message": message[:2000],
        "message_length": len(message),
        "seconds": round(time.process_time() - started, 3),
        "escapes": watch.seen,
        "peak_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def _load_and_check(directory: Path) -> None:
    """Load; what loads must be a whole model of the config that it claims."""
    import jax

    from florence_jax.checkpoint import load_checkpoint
    from florence_jax.model import abstract_params

    config, params, report = load_checkpoint(directory)
    str(report)
    shapes = jax.tree.map(lambda leaf: leaf.shape, params)
    expected = jax.tree.map(lambda leaf: leaf.shape, abstract_params(config))
    if shapes != expected:
        raise RuntimeError("what was loaded is not a model of its config")


def _load_pipeline(directory: Path) -> None:
    from florence_jax.inference.pipeline import Florence2Pipeline

    Florence2Pipeline.from_pretrained(directory)


def _mutations(root: Path, first: int, last: int) -> Iterator[dict[str, Any]]:
    from tests.checkpoint.hostile_mutations import Hostile

    hostile = Hostile(root)
    hostile.write_valid()
    for _ in range(2):  # the second load has nothing left to import or compile
        _load_and_check(hostile.directory)
    watch = _Watch()
    valid = _watched(watch, hostile.directory, lambda: _load_and_check(hostile.directory))
    yield {"case": "valid", "kind": "valid"} | valid
    for number in range(first, last):
        kind = hostile.write(number)
        found = _watched(watch, hostile.directory, lambda: _load_and_check(hostile.directory))
        yield {"case": number, "kind": kind} | found


def _directories(paths: list[str]) -> Iterator[dict[str, Any]]:
    import torch  # noqa: F401

    import florence_jax.inference.pipeline  # noqa: F401

    watch = _Watch()
    for path in paths:
        found = _watched(watch, Path(path), lambda path=path: _load_pipeline(Path(path)))
        yield {"case": Path(path).parent.name} | found


def main(arguments: list[str]) -> None:
    what, *rest = arguments
    # A load that takes all memory fails here instead of taking the machine along.
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_ADDRESS_SPACE, _MAX_ADDRESS_SPACE))
    cases = (
        _mutations(Path(rest[0]), int(rest[1]), int(rest[2]))
        if what == "mutations"
        else _directories(rest)
    )
    for case in cases:
        print(json.dumps(case), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
