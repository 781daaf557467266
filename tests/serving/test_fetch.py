"""Images behind URLs: from allowed hosts and public addresses alone, without redirects."""

import asyncio
import http.server
import ipaddress
import socket
import threading
import time

import pytest

pytest.importorskip("fastapi", reason='needs `pip install "florence-jax[serve]"`')

from florence_jax.serving.errors import ServingError
from florence_jax.serving.fetch import ImageFetcher, is_public

PUBLIC = ["8.8.8.8", "2606:4700::1111", "64:ff9b::8.8.8.8"]
OTHERS = [
    "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1",
    "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::", "64:ff9b::10.0.0.1",
    "64:ff9b::7f00:1",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC + OTHERS)
def test_which_addresses_are_public(address):
    assert is_public(ipaddress.ip_address(address)) == (address in PUBLIC)


class Pictures(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status = {"/moved": 302, "/missing": 404}.get(self.path, 200)
        if self.path == "/slow":
            time.sleep(1.5)
        self.send_response(status)
        self.send_header("Location", "http://127.0.0.1/secret")
        self.end_headers()
        if self.path == "/endless":
            self.wfile.write(b"x" * 5000)
        elif status == 200:
            self.wfile.write(b"picture for " + self.headers["Host"].encode())

    def log_message(self, *_):
        """Nothing on standard error."""


@pytest.fixture(scope="module")
def port():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def names(monkeypatch):
    """What the name "pictures.example" resolves to, in turn; and what was asked for."""
    answers, asked, real = [], [], socket.getaddrinfo

    def resolve(host, port, *arguments, **options):
        if host != "pictures.example":
            return real(host, port, *arguments, **options)
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in found]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return answers, asked


def fetched(url, port, *, may_connect=lambda address: True, **limits):
    allowed = [f"pictures.example:{port}", "pictures.example"]
    fetch = ImageFetcher(
        allowed, **{"max_bytes": 1000, "seconds": 1.0, **limits}, may_connect=may_connect
    )
    return asyncio.run(fetch(url))


def refusal(*arguments, **options):
    with pytest.raises(ServingError) as caught:
        fetched(*arguments, **options)
    return caught.value.status, caught.value.message


def test_an_allowed_host_is_asked_at_the_address_that_was_checked(port, names):
    answers, asked = names
    # The second answer is what an attacker's name server would say after the check.
    answers += [["127.0.0.1"], ["127.0.0.2"]]
    checked = []
    content = fetched(f"http://pictures.example:{port}/a.png", port,
                      may_connect=lambda address: checked.append(str(address)) or True)  # fmt: skip
    assert content == f"picture for pictures.example:{port}".encode()
    assert checked == ["127.0.0.1"]
    assert len(asked) == 1


@pytest.mark.parametrize("found", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["169.254.169.254"]])
def test_a_name_of_a_private_address_is_refused(port, names, found):
    names[0].append(found)
    status, message = refusal(f"http://pictures.example:{port}/", port, may_connect=is_public)
    assert (status, "private network" in message) == (422, True)


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example/", "http://pictures.example.evil/", "http://pictures.example:22/",
        "ftp://pictures.example/", "file:///etc/passwd", "http://user@pictures.example/",
        "http://user:pictures.example@evil/", "//pictures.example/", "http:///", "x", "",
        "http://[::1", "http://pictures.example:99999/", "http://127.0.0.1/", "gopher://x",
        "http://pictures.exämple/",
    ],
)  # fmt: skip
def test_other_urls_are_refused(port, names, url):
    assert refusal(url, port)[0] == 422
    assert names[1] == [], "nothing was even resolved"


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/moved", 422, "redirects is not followed"),
        ("/missing", 422, "status 404"),
        ("/endless", 413, "more than 1000 bytes"),
        ("/slow", 502, "within 1 s"),
    ],
)
def test_what_the_host_says_is_not_always_an_image(port, names, path, status, message):
    names[0].append(["127.0.0.1"])
    found = refusal(f"http://pictures.example:{port}{path}", port)
    assert (found[0], message in found[1]) == (status, True), found


def test_a_host_that_is_not_there(port, names):
    names[0].append(["127.0.0.1"])
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        status, _ = refusal(
            f"http://pictures.example:{port}/".replace(str(port), str(unused.getsockname()[1])),
            unused.getsockname()[1],
        )
    assert status == 502
