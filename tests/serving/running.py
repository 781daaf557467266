"""A server of a small model on a free port, and callers that speak to it without a client."""

import contextlib
import json
import socket
import time
import urllib.error
import urllib.request

from florence_jax.serving.server import Server, listen
from florence_jax.serving.service import Service
from florence_jax.serving.settings import ServerSettings
from tests.random_pipeline import small_pipeline


@contextlib.contextmanager
def serving(pipeline=None, *, warm_up=lambda: None, fetch=None, generation=None, **settings):
    """Yields (URL, service, lines of the log)."""
    lines = []
    service = Service(
        pipeline or small_pipeline(),
        ServerSettings(**{"batch_size": 2, "reader_threads": 2, **settings}),
        generation,
    )
    server = Server(service, warm_up=warm_up, log=lines.append, fetch=fetch, drain_seconds=20)
    with server.on_thread(listen("127.0.0.1", 0)) as url:
        wait_until(lambda: service.state == "ready")
        yield url, service, lines


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def ask(url, body=None, headers=None):
    """(status, headers, body) of a GET, or of a POST with a body: bytes, or a value for JSON."""
    headers = dict(headers or {})
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        headers.setdefault("Content-Type", "application/json")
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def form(fields, image=None):
    """(body, headers) of a multipart form; `fields` are (name, value) pairs."""
    parts = [
        f'--boundary\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields
    ]
    if image is not None:
        head = 'form-data; name="image"; filename="a.png"\r\nContent-Type: image/png'
        parts.append(
            f"--boundary\r\nContent-Disposition: {head}\r\n\r\n".encode() + image + b"\r\n"
        )
    body = b"".join(parts) + b"--boundary--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=boundary"}


def raw(url, data, *, seconds=30):
    """What the server answers to bytes on a connection, until it closes it."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        found = b""
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                found += part
        return found
