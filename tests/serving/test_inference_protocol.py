"""The Open Inference Protocol with Triton's own client, and what its tensors refuse."""

import base64
import json
import struct

import numpy as np
import pytest

from florence_jax.results.rows import result_to_json
from tests.inference.results import assert_close
from tests.random_pipeline import one_request_a_task, small_pipeline

pytest.importorskip("fastapi", reason='needs `pip install "florence-jax[serve]"`')

from florence_jax.serving.errors import ServingError
from florence_jax.serving.inference_protocol import read_infer_body
from tests.serving.running import ask, serving
from tests.serving.test_server import BASE64, PICTURE, picture

INFER = "/v2/models/florence2/infer"
MOST = 16


@pytest.fixture(scope="module")
def pipeline():
    return small_pipeline()


@pytest.fixture(scope="module")
def url(pipeline):
    with serving(pipeline, max_count=MOST) as (url, _, _):
        yield url


@pytest.fixture
def client(url):
    http = pytest.importorskip("tritonclient.http", reason='needs "tritonclient[http]"')
    client = http.InferenceServerClient(url.removeprefix("http://"))
    yield client
    client.close()


def tensors(binary, columns):
    """Triton's inputs of columns: bytes and texts, or boxes."""
    import tritonclient.http as http

    found = []
    for name, values in columns.items():
        is_box = name == "REGION"
        array = np.array(values, np.float32 if is_box else np.object_)
        tensor = http.InferInput(name, list(array.shape), "FP32" if is_box else "BYTES")
        tensor.set_data_from_numpy(array, binary_data=binary)
        found.append(tensor)
    return found


def results_of(response):
    return [json.loads(one) for one in response.as_numpy("RESULT")]


class TestTritonClient:
    def test_health_and_metadata(self, client):
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("florence2")
        assert client.is_model_ready("florence2", "1")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        metadata = client.get_model_metadata("florence2")
        assert [one["name"] for one in metadata["inputs"]] == ["IMAGE", "PROMPT", "TEXT", "REGION"]

    @pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
    def test_a_batch_of_tasks_and_images(self, client, pipeline, binary):
        import tritonclient.http as http

        asked = [one for one in one_request_a_task() if one.region is None][:MOST]
        images = [PICTURE if number % 2 else picture(number % 4) for number in range(len(asked))]
        texts = ["<and>".join(one.text) if isinstance(one.text, list) else one.text or ""
                 for one in asked]  # fmt: skip
        expected = [
            pipeline(image, one.prompt, text=text or None)
            for image, one, text in zip(images, asked, texts, strict=True)
        ]
        sent = images if binary else [base64.b64encode(one).decode() for one in images]
        response = client.infer(
            "florence2",
            tensors(
                binary, {"IMAGE": sent, "PROMPT": [one.prompt for one in asked], "TEXT": texts}
            ),
            request_id="mine",
            outputs=[http.InferRequestedOutput("RESULT", binary_data=binary)],
        )
        assert response.get_response()["id"] == "mine"
        assert_close(results_of(response), result_to_json(expected))

    def test_one_image_with_regions(self, client, pipeline):
        boxes = [[30, 20, 50, 40], [0, 0, 80, 60]]
        columns = {"IMAGE": [PICTURE], "PROMPT": ["<REGION_TO_OCR>"] * 2, "REGION": boxes}
        response = client.infer("florence2", tensors(True, columns))
        expected = pipeline(PICTURE, "<REGION_TO_OCR>", region=boxes)
        assert_close(results_of(response), result_to_json(expected))

    def test_errors_and_deadlines(self, client):
        from tritonclient.utils import InferenceServerException

        def refused(columns, **options):
            with pytest.raises(InferenceServerException) as caught:
                client.infer("florence2", tensors(True, columns), **options)
            return f"{caught.value.status()} {caught.value.message()}"

        good = {"IMAGE": [PICTURE], "PROMPT": ["<OD>"]}
        assert "PROMPT is missing" in refused({"IMAGE": [PICTURE]})
        assert "did you mean '<OD>'" in refused(good | {"PROMPT": ["<ODD>"]})
        assert "request 2: " in refused({"IMAGE": [PICTURE, b"x"], "PROMPT": ["<OD>"]})
        assert "no input 'SIZE'" in refused(good | {"SIZE": ["1"]})
        assert "504 no answer within" in refused(good, timeout=1)
        assert "the most is 16" in refused(good | {"PROMPT": ["<OD>"] * (MOST + 1)})


def test_plain_json_gives_plain_json(url, pipeline):
    inputs = [
        {"name": "IMAGE", "datatype": "BYTES", "shape": [1, 1], "data": [[BASE64]]},
        {"name": "PROMPT", "datatype": "BYTES", "shape": [1], "data": ["<CAPTION>"]},
    ]
    body = {"inputs": inputs, "parameters": {"max_new_tokens": 4}}
    status, _, text = ask(url + INFER, body)
    assert status == 200
    (output,) = json.loads(text)["outputs"]
    assert (output["name"], output["shape"]) == ("RESULT", [1])
    expected = pipeline(PICTURE, "<CAPTION>", max_new_tokens=4)
    assert json.loads(output["data"][0]) == expected


def body_of(*inputs, rest=b"", **fields):
    text = json.dumps({"inputs": list(inputs), **fields}).encode()
    return text + rest, str(len(text))


IMAGE = {"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": [BASE64]}
PROMPT = {"name": "PROMPT", "datatype": "BYTES", "shape": [1], "data": ["<OD>"]}
BINARY = {"name": "PROMPT", "datatype": "BYTES", "shape": [1]}


def sized(size):
    return BINARY | {"parameters": {"binary_data_size": size}}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ((b"{}", None), "inputs is no list"),
        ((b"{}", "9"), "the body has 2 bytes"),
        ((b"{}", "-1"), "the body has 2 bytes"),
        (body_of(IMAGE, PROMPT, PROMPT), "is there twice"),
        (body_of(IMAGE, PROMPT | {"shape": [2]}), "has 1 elements"),
        (body_of(IMAGE, PROMPT | {"shape": [-1]}), "the shape of"),
        (body_of(IMAGE, PROMPT | {"shape": [True]}), "the shape of"),
        (body_of(IMAGE, PROMPT | {"shape": [1] * 9}), "the shape of"),
        (body_of(IMAGE, PROMPT | {"shape": [1 << 40]}), "the most is"),
        (body_of(IMAGE, PROMPT | {"datatype": "INT64"}), "expected one of"),
        (body_of(IMAGE, PROMPT | {"data": [1]}), "not of type BYTES"),
        (body_of(IMAGE, PROMPT | {"data": "<OD>"}), "no list `data`"),
        (body_of(IMAGE, sized(9), rest=struct.pack("<I", 4) + b"<OD>"), "8 are left"),
        (body_of(IMAGE, sized(8), rest=struct.pack("<I", 5) + b"<OD>"), "within an element"),
        (body_of(IMAGE, sized(2), rest=b"ab"), "within the length"),
        (body_of(IMAGE, sized(-1)), "binary_data_size"),
        (body_of(IMAGE, sized(8), rest=struct.pack("<I", 4) + b"<OD>more"), "belong to none"),
        (body_of(IMAGE, sized(5), rest=struct.pack("<I", 1) + b"\xff"), "not UTF-8"),
        (body_of(IMAGE, PROMPT, outputs=[{"name": "TEXT"}]), "there is only RESULT"),
        (body_of(IMAGE, PROMPT, parameters={"num_beams": True}), "parameter num_beams"),
        (body_of(IMAGE, PROMPT, parameters=[]), "parameters is no object"),
        (
            body_of(
                IMAGE, PROMPT, {"name": "REGION", "datatype": "FP32", "shape": [2], "data": [1, 2]}
            ),
            "expected [N, 4]",
        ),
        (
            body_of(
                IMAGE, PROMPT,
                {"name": "REGION", "datatype": "FP32", "shape": [1, 4], "data": [10**400, 0, 1, 1]},
            ),
            "FP32 does not hold",
        ),
    ],
)  # fmt: skip
def test_what_is_no_request(body, message):
    with pytest.raises(ServingError) as caught:
        read_infer_body(*body, max_count=MOST)
    assert message in caught.value.message
    assert caught.value.status in (400, 422)
