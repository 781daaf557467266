"""Callers that go away, dawdle, send damage or too much: clear statuses, and the others go on.

The whole storm: `pytest -m faults tests/serving/test_faults.py -s`.
"""

import base64
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.random_pipeline import random_checkpoint, small_pipeline

pytest.importorskip("fastapi", reason='needs `pip install "florence-jax[serve]"`')

from florence_jax.serving.http_protocol import TimedProtocol
from tests.serving.running import ask, form, raw, serving, wait_until
from tests.serving.test_server import BASE64, PICTURE, picture

ROOT = Path(__file__).resolve().parents[2]
BODY = json.dumps({"image": BASE64, "prompt": "<CAPTION>"}).encode()
HEAD = (
    b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n"
)
REQUEST = HEAD % len(BODY) + BODY
# What a damaged request may get; 200 where the damage is in what nobody looks at.
STATUSES = {200, 400, 404, 405, 408, 413, 415, 422}


INSERTED = (
    *(b"\0", b'"', b"[[", b"]}", b"\xff\xfe", b"1e999", b"\\ud800", b"\r\n", b"--boundary"),
    *(b"null", b"-1", b"9" * 30, b"{", b":", b"<OD>"),
)


@pytest.fixture(scope="module")
def pipeline():
    return small_pipeline()


@pytest.fixture(scope="module")
def server(pipeline):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TimedProtocol, "head_seconds", 0.3)
        with serving(
            pipeline, max_body_bytes=200_000, max_pixels=20_000, upload_timeout=0.5
        ) as running:
            yield running


@pytest.fixture(scope="module")
def url(server):
    return server[0]


@pytest.fixture(scope="module")
def caption(pipeline):
    return pipeline(PICTURE, "<CAPTION>")


@pytest.fixture(autouse=True)
def _the_others_go_on(server, caption):
    """After each fault the server answers as before, and nothing of it is left."""
    yield
    url, service, _ = server
    status, _, text = ask(f"{url}/predict", {"image": BASE64, "prompt": "<CAPTION>"})
    assert (status, json.loads(text)) == (200, caption)
    wait_until(lambda: service.admission.under_way == 0)


def connect(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


class TestCallersGoAway:
    def test_in_the_middle_of_an_upload(self, server):
        url, _, lines = server
        before = len(lines)
        with connect(url) as connection:
            connection.sendall(REQUEST[: len(REQUEST) // 2])
            # Closing sends a reset at once, as the kernel does for a process that was killed.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_until(lambda: len(lines) > before)
        assert json.loads(lines[before])["status"] == 499

    def test_killed_in_the_middle_of_an_upload(self, server):
        url, _, lines = server
        before = len(lines)
        code = (
            "import socket, sys, time\n"
            "s = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
            "s.sendall(sys.stdin.buffer.read())\nprint('sent', flush=True)\ntime.sleep(60)\n"
        )
        address = url.removeprefix("http://").split(":")
        with subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", code, *address],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as caller:  # fmt: skip
            caller.stdin.write(REQUEST[:-100])
            caller.stdin.close()
            assert caller.stdout.readline() == b"sent\n"
            caller.kill()
        wait_until(lambda: len(lines) > before)
        assert json.loads(lines[before])["status"] in (408, 499)

    def test_before_the_answer_which_is_not_made(self, pipeline, caption):
        with serving(pipeline, max_delay=2.0) as (url, service, lines):
            with connect(url) as connection:
                connection.sendall(REQUEST)
                wait_until(lambda: service.admission.under_way == 1)
            wait_until(lambda: lines)
            assert json.loads(lines[0])["status"] == 499
            wait_until(lambda: service.admission.under_way == 0)
            # Those that come next have their own answers, and the one that left has none.
            with ThreadPoolExecutor(3) as callers:
                found = list(
                    callers.map(
                        lambda seed: ask(
                            f"{url}/predict",
                            {"image": base64.b64encode(picture(seed)).decode(), "prompt": "<OD>"},
                        )[0],
                        range(3),
                    )
                )
            assert found == [200] * 3
            assert service.engine.stats.batches[1] == 3


class TestSlowCallers:
    def test_a_head_has_to_come_in_time(self, url):
        started = time.monotonic()
        assert raw(url, b"") == b""
        assert raw(url, b"POST /predict HTTP/1.1\r\nHost: a\r\n") == b""
        assert time.monotonic() - started < 20

    def test_a_head_that_drips(self, url):
        with connect(url) as connection, contextlib.suppress(ConnectionError):
            for letter in b"GET /v2 HTTP/1.1\r\n" * 100:
                connection.sendall(bytes([letter]))
                time.sleep(0.02)
                connection.settimeout(0.001)
                with contextlib.suppress(TimeoutError):
                    if connection.recv(1) == b"":
                        return
            pytest.fail("the connection stayed open")

    def test_a_body_has_to_come_in_time(self, url):
        assert raw(url, REQUEST[:-10]).startswith(b"HTTP/1.1 408 ")

    def test_many_of_them_hold_nobody_up(self, url, caption):
        with contextlib.ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(connect(url)).sendall(b"POST /predict HTTP/1.1\r\n")
            status, _, text = ask(f"{url}/predict", {"image": BASE64, "prompt": "<CAPTION>"})
            assert (status, json.loads(text)) == (200, caption)


class TestBombs:
    def test_text_that_grows_a_thousand_times(self, url):
        def chunk(kind, data):
            checksum = struct.pack(">I", zlib.crc32(kind + data))
            return struct.pack(">I", len(data)) + kind + data + checksum

        text = b"a\0\0" + zlib.compress(b" " * 50_000_000, 9)
        bomb = PICTURE[:33] + chunk(b"zTXt", text) + PICTURE[33:]
        status, _, found = ask(f"{url}/predict", *form([("prompt", "<CAPTION>")], bomb))
        # The text is left out, or the image is refused; neither takes the memory.
        assert status in (200, 422), found

    @pytest.mark.parametrize("side", [50_000, 2**31 - 1])
    def test_a_header_of_many_pixels(self, url, side):
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        bomb = PICTURE[:12] + header + struct.pack(">I", zlib.crc32(header)) + PICTURE[33:]
        status, _, found = ask(f"{url}/predict", *form([("prompt", "<CAPTION>")], bomb))
        assert status == 422, found

    def test_fields_and_files_without_end(self, url):
        fields = [("prompt", "<CAPTION>")] * 1000
        assert ask(f"{url}/predict", *form(fields, PICTURE))[0] == 400
        body, headers = form([("prompt", "x" * 100_000)], PICTURE)
        assert ask(f"{url}/predict", body, headers)[0] == 400


def mutated(data, rng):
    """Bytes changed, cut out, doubled or put in, at a few places."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(5)
        if kind == 0 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == 1:
            del data[at : at + rng.choice((1, 4, 100, 5000))]
        elif kind == 2:
            data[at:at] = data[at : at + rng.choice((1, 20, 300))]
        elif kind == 3:
            data[at:at] = rng.choice(INSERTED)
        else:
            data = data[:at]
    return bytes(data)


def originals():
    """(path, body, headers) of good requests of every kind."""
    image = {"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": [BASE64]}
    text = struct.pack("<I", 4) + b"<OD>"
    prompt = {"name": "PROMPT", "datatype": "BYTES", "shape": [1]}
    size = {"parameters": {"binary_data_size": len(text)}}
    head = json.dumps({"inputs": [image, prompt | size]}).encode()
    plain = json.dumps({"inputs": [image, prompt | {"data": ["<OD>"]}]}).encode()
    json_type = {"Content-Type": "application/json"}
    infer = "/v2/models/florence2/infer"
    full = {"prompt": ["<OD>", "<REGION_TO_OCR>"], "region": [None, [1, 2, 30, 40]], "timeout": 9}
    return [
        ("/predict", BODY, json_type),
        ("/predict", json.dumps(full | {"image": BASE64}).encode(), json_type),
        ("/predict", *form([("prompt", "<OD>"), ("constrained", "false")], PICTURE)),
        (infer, plain, json_type),
        (infer, head + text, {"Inference-Header-Content-Length": str(len(head))}),
    ]


def storm(url, count, seed):
    """The statuses of `count` damaged requests, a third of them damaged in their heads too."""
    rng, found = random.Random(seed), Counter()
    host = url.removeprefix("http://")
    good = originals()
    connection = http.client.HTTPConnection(host, timeout=60)
    for number in range(count):
        path, body, headers = rng.choice(good)
        body = mutated(body, rng)
        if number % 3 == 0:
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            head = f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{lines}"
            head = mutated(f"{head}Content-Length: {len(body)}\r\n".encode(), rng)
            answer = raw(url, head + b"\r\n" + body)
            found[int(answer[9:12]) if answer[:9] == b"HTTP/1.1 " else "closed"] += 1
            continue
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            response.read()
            found[response.status] += 1
        except (http.client.HTTPException, ConnectionError):
            connection.close()
            found["closed"] += 1
    connection.close()
    return found


def check_storm(found):
    assert set(found) <= STATUSES | {"closed"}, found
    # A head that is cut short, or whose server gave up on it.
    assert found["closed"] <= sum(found.values()) / 6, found


def test_damaged_requests_are_refused(url):
    check_storm(storm(url, 120, seed=0))


@pytest.mark.faults
def test_five_thousand_damaged_requests(server, caption):
    url, _, _ = server
    wrong = []
    over = threading.Event()

    def neighbour():
        while not over.is_set():
            status, _, text = ask(f"{url}/predict", {"image": BASE64, "prompt": "<CAPTION>"})
            if (status, json.loads(text)) != (200, caption):
                wrong.append((status, text))

    bystander = threading.Thread(target=neighbour)
    bystander.start()
    with ThreadPoolExecutor(4) as pool:
        found = sum(pool.map(lambda seed: storm(url, 1250, seed), range(1, 5)), Counter())
    over.set()
    bystander.join()
    print(f"statuses of {sum(found.values())} damaged requests: {dict(found)}")
    check_storm(found)
    assert wrong == []


@pytest.mark.faults
def test_sigterm_under_load_answers_what_is_under_way():
    process = subprocess.Popen(
        [sys.executable, "-m", "florence_jax", "serve", "--model", str(random_checkpoint()),
         "--port", "0", "--batch-size", "4", "--max-delay-ms", "100"],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    url, first = None, []
    for line in process.stderr:
        first.append(line)
        if "ready at" in line:
            url = line.split()[-1]
            break
    assert url is not None, first
    rest = threading.Thread(target=lambda: first.extend(process.stderr))
    rest.start()
    found, under_way = Counter(), threading.Semaphore(0)

    def caller(seed):
        image = base64.b64encode(picture(seed)).decode()
        while True:
            under_way.release()
            try:
                status, _, text = ask(f"{url}/predict", {"image": image, "prompt": "<OD>"})
            except (ConnectionRefusedError, urllib.error.URLError, ConnectionResetError):
                return
            json.loads(text)
            found[status] += 1

    callers = [threading.Thread(target=caller, args=(seed,)) for seed in range(16)]
    for one in callers:
        one.start()
    for _ in range(64):
        assert under_way.acquire(timeout=60)
    process.send_signal(signal.SIGTERM)
    for one in callers:
        one.join(60)
    assert process.wait(60) == 0
    rest.join()
    process.stderr.close()
    logged = [json.loads(line) for line in first if line.startswith("{")]
    statuses = Counter(one["status"] for one in logged)
    print(f"answers before and after SIGTERM: {dict(found)}; in the log: {dict(statuses)}")
    # Every request that was accepted has its answer, or was told to come again.
    assert set(statuses) <= {200, 503}
    assert sum(found.values()) == sum(statuses.values())
    assert found[200] >= 16
