"""A server's routes: answers are the pipeline's, and what it refuses has a status."""

import base64
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from florence_jax.processing import TASKS
from florence_jax.results.rows import result_to_json
from tests.inference.counting import counted_images
from tests.inference.results import assert_close
from tests.random_pipeline import one_request_a_task, random_image, small_pipeline

pytest.importorskip("fastapi", reason='needs `pip install "florence-jax[serve]"`')

from tests.serving.running import ask, form, raw, serving, wait_until

MOST_BYTES, MOST_PIXELS, MOST = 300_000, 20_000, 4


def png(image=None):
    file = io.BytesIO()
    (image or random_image()).save(file, "png")
    return file.getvalue()


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8)
    return png(Image.fromarray(pixels))


PICTURE = png()
BASE64 = base64.b64encode(PICTURE).decode()


@pytest.fixture(scope="module")
def pipeline():
    return small_pipeline()


@pytest.fixture(scope="module")
def server(pipeline):
    with serving(
        pipeline, max_body_bytes=MOST_BYTES, max_pixels=MOST_PIXELS, max_count=MOST,
        allowed_hosts=("pictures.example", "localhost"),
    ) as running:  # fmt: skip
        yield running


@pytest.fixture(scope="module")
def url(server):
    return server[0]


@pytest.fixture(scope="module")
def expected(pipeline):
    """The pipeline's own answer to each task about `PICTURE`, as JSON has it."""
    requests = one_request_a_task()
    results = [pipeline(PICTURE, one.prompt, text=one.text, region=one.region) for one in requests]
    return dict(zip(TASKS, result_to_json(results), strict=True))


def answer(url, body, headers=None):
    status, _, text = ask(f"{url}/predict", body, headers)
    assert status == 200, text
    return json.loads(text)


def refused(url, body, headers=None, path="/predict"):
    status, _, text = ask(url + path, body, headers)
    return status, json.loads(text)["error"]


class TestPredict:
    def test_every_task_is_answered_as_by_the_pipeline(self, url, expected):
        with ThreadPoolExecutor(15) as callers:
            answers = callers.map(
                lambda one: answer(
                    url,
                    {"image": BASE64, "prompt": one.prompt, "text": one.text,
                     "region": one.region},
                ),
                one_request_a_task(),
            )  # fmt: skip
            assert_close(list(answers), list(expected.values()))

    def test_a_form_is_a_call_too(self, url, expected):
        assert_close(answer(url, *form([("prompt", "<OD>")], PICTURE)), expected["<OD>"])
        fields = [("prompt", "<REGION_TO_OCR>"), ("region", "30,20,50,40")]
        assert_close(answer(url, *form(fields, PICTURE)), expected["<REGION_TO_OCR>"])
        task = "<OPEN_VOCABULARY_DETECTION>"
        fields = [("prompt", task), ("text", "car"), ("text", "door")]
        assert_close(answer(url, *form(fields, PICTURE)), expected[task])

    def test_several_prompts_are_a_list(self, url, expected):
        found = answer(url, {"image": BASE64, "prompt": ["<CAPTION>", "<OCR>"]})
        assert_close(found, [expected["<CAPTION>"], expected["<OCR>"]])
        found = answer(url, {"image": BASE64, "prompt": ["<CAPTION>"]})
        assert_close(found, [expected["<CAPTION>"]])

    def test_settings_of_a_call(self, url, pipeline):
        found = answer(url, {"image": BASE64, "prompt": "<OD>", "max_new_tokens": 5})
        assert_close(found, result_to_json(pipeline(PICTURE, "<OD>", max_new_tokens=5)))
        labels = {"constrained": True, "labels": ["cat", "dog"]}
        found = answer(url, {"image": BASE64, "prompt": "<OD>", **labels})
        assert_close(found, result_to_json(pipeline(PICTURE, "<OD>", **labels)))

    def test_equal_images_are_encoded_once(self, server):
        url, service, _ = server
        content = base64.b64encode(picture(7)).decode()
        with counted_images() as encoded, ThreadPoolExecutor(4) as callers:
            for _ in range(2):
                prompts = ["<CAPTION>", "<OCR>", "<DETAILED_CAPTION>", "<OD>"]
                list(
                    callers.map(lambda one: answer(url, {"image": content, "prompt": one}), prompts)
                )
        assert sum(encoded) == 1
        assert 0 < service.images.nbytes <= service.settings.cache_bytes


class TestRefused:
    @pytest.mark.parametrize(
        ("body", "status", "message"),
        [
            (b"{", 400, "no JSON"),
            (b"[]", 400, "JSON list"),
            (b"[" * 100_000, 400, "nested too deeply"),
            ({"image": BASE64}, 422, "prompt"),
            ({"prompt": "<OD>"}, 422, "0 images"),
            ({"image": BASE64, "image_url": "http://a/", "prompt": "<OD>"}, 422, "2 images"),
            ({"image": "?", "prompt": "<OD>"}, 422, "no base64"),
            ({"image": "", "prompt": "<OD>"}, 422, "empty"),
            ({"image": "AAAA", "prompt": "<OD>"}, 422, "not an image"),
            ({"image": BASE64, "prompt": "<ODD>"}, 422, "did you mean '<OD>'?"),
            ({"image": BASE64, "prompt": "<OD>", "beams": 3}, 422, "beams: Extra inputs"),
            ({"image": BASE64, "prompt": "<OD>", "num_beams": 2}, 422, "allows 1 at most"),
            ({"image": BASE64, "prompt": "<OD>", "labels": ["a"]}, 422, "constrained"),
            ({"image": BASE64, "prompt": "<OD>", "max_new_tokens": "9"}, 422, "valid integer"),
            ({"image": BASE64, "prompt": ["<OD>"] * (MOST + 1)}, 422, "the most is 4"),
            (
                {"image": BASE64, "prompt": "<REGION_TO_OCR>", "region": [0, 0, 900, 9]},
                422,
                "outside the image",
            ),
            ({"image": BASE64, "prompt": "<OD>", "timeout": 1e-9}, 504, "no answer within"),
            ({"image_url": "http://other.example/a", "prompt": "<OD>"}, 422, "not fetched from"),
            ({"image_url": "file:///etc/passwd", "prompt": "<OD>"}, 422, "image_url must be"),
            ({"image_url": "http://localhost/a.png", "prompt": "<OD>"}, 422, "private network"),
        ],
        ids=lambda value: str(value)[:40],
    )  # fmt: skip
    def test_what_is_wrong_is_said(self, url, body, status, message):
        headers = {"Content-Type": "application/json"}
        found, error = refused(url, body, headers)
        assert (found, message in error) == (status, True), error

    def test_large_bodies_and_large_images(self, url):
        headers = {"Content-Type": "application/json"}
        assert ask(f"{url}/predict", b" " * (MOST_BYTES + 1), headers)[0] == 413
        chunked = b"%x\r\n%s\r\n" % (65536, b" " * 65536) * 6
        head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        found = raw(url, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked)
        assert found.startswith(b"HTTP/1.1 413 ")
        # 300 kilobytes that are 100 million pixels.
        bomb = png(Image.new("1", (10_000, 10_000)))
        status, error = refused(url, *form([("prompt", "<OD>")], bomb))
        assert (status, "max_pixels" in error) == (422, True), error

    def test_other_types_paths_and_methods(self, url):
        assert refused(url, b"x", {"Content-Type": "image/png"})[0] == 415
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        assert refused(url, b"x", headers)[0] == 415
        assert refused(url, b"x", path="/nothing")[0] == 404
        assert refused(url, b"x", path="/v2")[0] == 405
        assert refused(url, None)[0] == 405

    def test_the_server_answers_on(self, server, expected):
        url, service, _ = server
        wait_until(lambda: service.admission.under_way == 0)
        found = answer(url, {"image": BASE64, "prompt": "<CAPTION>"})
        assert found == expected["<CAPTION>"]


class TestOperation:
    def test_metrics_the_log_and_the_openapi_page(self, server):
        url, _, lines = server
        headers = {"X-Request-ID": "mine-1"}
        status, found, _ = ask(f"{url}/predict", {"image": BASE64, "prompt": "<CAPTION>"}, headers)
        assert (status, found["x-request-id"]) == (200, "mine-1")
        text = ask(f"{url}/metrics")[2].decode()
        assert 'florence_http_requests_total{route="/predict",status="200"}' in text
        assert 'florence_answers_total{task="<CAPTION>"}' in text
        assert "florence_ready 1.0" in text
        wait_until(lambda: any('"mine-1"' in line for line in lines))
        line = json.loads(next(line for line in lines if '"mine-1"' in line))
        assert (line["status"], line["path"], line["tasks"]) == (200, "/predict", ["<CAPTION>"])
        assert line["bytes_in"] > len(PICTURE)
        assert BASE64[:40] not in "".join(lines)
        schema = json.loads(ask(f"{url}/openapi.json")[2])
        assert {"/predict", "/v2/models/florence2/infer", "/metrics"} <= schema["paths"].keys()
        assert ask(f"{url}/docs")[0] == 200

    def test_a_key(self, pipeline):
        with serving(pipeline, api_key="secret") as (url, _, _):
            assert ask(f"{url}/v2/health/ready")[0] == 200
            for headers in ({}, {"X-API-Key": "secre"}, {"Authorization": "Bearer secrets"}):
                status, error = refused(url, {"prompt": "<OD>"}, headers)
                assert (status, "API key" in error) == (401, True)
            for headers in ({"X-API-Key": "secret"}, {"Authorization": "Bearer secret"}):
                assert refused(url, {"prompt": "<OD>"}, headers)[0] == 422

    def test_it_is_ready_after_the_warm_up(self, pipeline):
        warm = threading.Event()
        from florence_jax.serving.server import Server, listen
        from florence_jax.serving.service import Service
        from florence_jax.serving.settings import ServerSettings

        service = Service(pipeline, ServerSettings(batch_size=2))
        server = Server(service, warm_up=lambda: warm.wait(60), log=lambda line: None)
        with server.on_thread(listen("127.0.0.1", 0)) as url:
            wait_until(lambda: server.started)
            assert ask(f"{url}/v2/health/live")[0] == 200
            assert ask(f"{url}/v2/health/ready")[0] == 503
            status, headers, _ = ask(f"{url}/predict", {"image": BASE64, "prompt": "<OD>"})
            assert (status, headers["retry-after"]) == (503, "1")
            warm.set()
            wait_until(lambda: ask(f"{url}/v2/health/ready")[0] == 200)
