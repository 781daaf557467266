"""Run a service behind uvicorn: until a signal, or on a thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn  # pyright: ignore[reportMissingImports]

from florence_jax.serving.app import create_app
from florence_jax.serving.fetch import ImageFetcher
from florence_jax.serving.http_protocol import TimedProtocol
from florence_jax.serving.service import Service

_BACKLOG = 2048
_HEAD_BYTES = 64 * 1024
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is any free one.

    Raises:
        OSError: the address is taken, or is none of this machine's; the message says so.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(
            f"the server cannot listen at {host}:{port} ({error.strerror or error}): choose "
            "another --host or --port"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a listening socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Server(uvicorn.Server):
    """A server of one service, which becomes ready when `warm_up` has returned.

    A signal drains it: no connection is taken any more, what is under way is answered, for at most
    `drain_seconds`.
    """

    def __init__(
        self,
        service: Service,
        *,
        warm_up: Callable[[], Any] = lambda: None,
        drain_seconds: float = 60.0,
        log: Callable[[str], None] | None = None,
        fetch: ImageFetcher | None = None,
    ) -> None:
        """
        Args:
            service: answers the requests.
            warm_up: runs on a thread of its own, while the server is not ready yet.
            drain_seconds: how long a signal lets requests go on.
            log: takes a line for each request; by default standard error.
            fetch: as for `create_app`.
        """
        app = create_app(service, log=log or _log_line, started=self._start_warm_up, fetch=fetch)
        super().__init__(
            uvicorn.Config(
                app,
                http=TimedProtocol,
                ws="none",
                loop="asyncio",
                lifespan="on",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=service.settings.max_connections,
                h11_max_incomplete_event_size=_HEAD_BYTES,
                timeout_graceful_shutdown=max(1, round(drain_seconds)),
            )
        )
        self._service, self._warm_up = service, warm_up
        self._failure: BaseException | None = None

    def run_until_signal(self, listener: socket.socket) -> None:
        """Serve on the main thread until SIGTERM or Ctrl-C; a second Ctrl-C ends at once.

        Raises:
            Exception: whatever the warm-up raised.
        """
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        asyncio.run(self.serve(sockets=[listener]))
        if self._failure is not None:
            raise self._failure

    @contextlib.contextmanager
    def on_thread(self, listener: socket.socket) -> Iterator[str]:
        """Serve on another thread while the block runs; yields the server's URL.

        Raises:
            Exception: whatever the warm-up raised.
        """
        thread = threading.Thread(
            target=lambda: asyncio.run(self.serve(sockets=[listener])), name="server"
        )
        thread.start()
        try:
            yield url_of(listener)
        finally:
            self.stop()
            thread.join()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Drain and end, as a signal does."""
        self._service.state = "draining"
        self.should_exit = True

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._service.state = "draining"
        super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, which would raise the signal again at the end: a drained server has not
        failed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start_warm_up(self) -> None:
        threading.Thread(target=self._become_ready, name="warm up", daemon=True).start()

    def _become_ready(self) -> None:
        try:
            self._warm_up()
        except BaseException as error:
            self._failure = error
            self.should_exit = True
        else:
            if self._service.state == "warming up":
                self._service.state = "ready"


def _log_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
