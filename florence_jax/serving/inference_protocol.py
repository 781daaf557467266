"""Open Inference Protocol v2: tensors IMAGE, PROMPT, TEXT and REGION in, RESULT out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import florence_jax
from florence_jax.inference.requests import Request
from florence_jax.results.rows import result_to_json
from florence_jax.runtime.jsonl import json_text
from florence_jax.serving.errors import ServingError
from florence_jax.serving.predict_body import decode_base64
from florence_jax.serving.service import Answer, Options
from florence_jax.serving.tensors import (
    InferenceRequest,
    Tensor,
    read_inference_request,
    write_inference_response,
)

MODEL, VERSION = "florence2", "1"
RESULT = "RESULT"
_INPUTS = {"IMAGE": "BYTES", "PROMPT": "BYTES", "TEXT": "BYTES", "REGION": "FP32"}
_REQUIRED = ("IMAGE", "PROMPT")
_BOX = 4
_MICROSECONDS = 1e-6

SERVER_METADATA = {
    "name": "florence-jax",
    "version": florence_jax.__version__,
    "extensions": ["binary_tensor_data"],
}
MODEL_METADATA = {
    "name": MODEL,
    "versions": [VERSION],
    "platform": "jax",
    "inputs": [
        {"name": name, "datatype": kind, "shape": [-1, _BOX] if kind == "FP32" else [-1]}
        for name, kind in _INPUTS.items()
    ],
    "outputs": [{"name": RESULT, "datatype": "BYTES", "shape": [-1]}],
}


def read_infer_body(
    body: bytes, json_length: str | None, *, max_count: int
) -> tuple[InferenceRequest, list[Request], Options]:
    """The requests in a body, and what the caller chose beside them.

    Args:
        body, json_length: as for `read_inference_request`.
        max_count: requests in one call.

    Raises:
        ServingError: it is no request of the protocol, or tensors that do not go together.
    """
    asked = read_inference_request(body, json_length, max_elements=_BOX * max_count)
    for name, tensor in asked.inputs.items():
        if name not in _INPUTS:
            raise ServingError(400, f"there is no input {name[:100]!r}: they are {[*_INPUTS]}")
        if tensor.datatype != _INPUTS[name]:
            raise ServingError(400, f"{name} is of type {tensor.datatype}, not {_INPUTS[name]}")
    for name in _REQUIRED:
        if name not in asked.inputs:
            raise ServingError(400, f"the input {name} is missing")
    if set(asked.outputs) - {RESULT}:
        raise ServingError(400, f"the outputs are {asked.outputs}: there is only {RESULT}")
    columns = {
        "image": [_content(value) for value in asked.inputs["IMAGE"].values],
        "prompt": _texts(asked.inputs["PROMPT"], "PROMPT"),
        "text": [one or None for one in _texts(asked.inputs.get("TEXT"), "TEXT")] or [None],
        "region": _regions(asked.inputs.get("REGION")),
    }
    count = max(map(len, columns.values()))
    for name, values in columns.items():
        if len(values) not in (1, count):
            raise ServingError(
                400, f"{name.upper()} has {len(values)} entries for {count} requests: expected 1 "
                f"or {count}",
            )  # fmt: skip
    rows = [
        {name: values[0 if len(values) == 1 else row] for name, values in columns.items()}
        for row in range(count)
    ]
    return asked, [Request(**row) for row in rows], _options(asked)


def infer_response(asked: InferenceRequest, answers: Sequence[Answer]) -> tuple[bytes, int | None]:
    """The body of the response, and the length of the JSON in it where that is not all."""
    results = [json_text(result_to_json(answer.response.result)) for answer in answers]
    fields = {"model_name": MODEL, "model_version": VERSION}
    if asked.id:
        fields["id"] = asked.id
    return write_inference_response(fields, {RESULT: results}, asked)


def _options(asked: InferenceRequest) -> Options:
    given = dict(asked.parameters)
    kinds = {"constrained": bool, "num_beams": int, "max_new_tokens": int, "timeout": int}
    chosen: dict[str, Any] = {}
    for name, kind in kinds.items():
        value = given.get(name)
        if value is None:
            continue
        if type(value) is not kind or (kind is int and value < 1):
            raise ServingError(400, f"the parameter {name} is {value!r:.50}")
        chosen[name] = value
    if "timeout" in chosen:
        chosen["timeout"] *= _MICROSECONDS
    return Options(**chosen)


def _content(value: str | bytes) -> bytes:
    """The image file; JSON has it in base64."""
    return value if isinstance(value, bytes) else decode_base64(value, "IMAGE")


def _texts(tensor: Tensor | None, name: str) -> list[str]:
    if tensor is None:
        return []
    try:
        return [one.decode() if isinstance(one, bytes) else one for one in tensor.values]
    except UnicodeDecodeError:
        raise ServingError(400, f"{name} is not UTF-8") from None


def _regions(tensor: Tensor | None) -> list[list[float] | None]:
    if tensor is None:
        return [None]
    if not tensor.shape or tensor.shape[-1] != _BOX:
        raise ServingError(400, f"REGION has the shape {list(tensor.shape)}, expected [N, {_BOX}]")
    values = tensor.values
    return [values[at : at + _BOX] for at in range(0, len(values), _BOX)]
