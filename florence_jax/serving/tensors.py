"""Tensors of the Open Inference Protocol v2, as JSON and in its binary data extension.

https://github.com/kserve/open-inference-protocol and Triton's extension_binary_data.md. A body in
the extension is JSON, then the tensors' bytes in their order; a header gives the JSON's length. An
element of type BYTES is a little-endian uint32 with its length, then its bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from florence_jax.runtime.jsonl import json_text
from florence_jax.serving.errors import ServingError
from florence_jax.serving.predict_body import parse_json

LENGTH_HEADER = "inference-header-content-length"
_TYPES = ("BYTES", "FP32")
_MAX_AXES = 8


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input.

    Attributes:
        datatype: "BYTES" or "FP32".
        shape: its axes.
        values: elements in row-major order: bytes from the extension, str from JSON, or float.
    """

    datatype: str
    shape: tuple[int, ...]
    values: list[Any]


@dataclass(frozen=True, kw_only=True)
class InferenceRequest:
    """A request to infer.

    Attributes:
        id: the caller's, for the response.
        inputs: by name.
        outputs: the names that are asked for; empty: all of them.
        is_binary: whether each output is wanted in the extension, by name.
        binary_by_default: for outputs that are not named.
        parameters: of the request.
    """

    id: str
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    is_binary: Mapping[str, bool]
    binary_by_default: bool
    parameters: Mapping[str, Any]


def read_inference_request(
    body: bytes, json_length: str | None, *, max_elements: int
) -> InferenceRequest:
    """The request in a body.

    Args:
        body: of the HTTP request.
        json_length: the value of the header `LENGTH_HEADER`; None: all of the body is JSON.
        max_elements: of one tensor.

    Raises:
        ServingError: 400, it is no request of the protocol; 422, a tensor is too large.
    """
    length = len(body) if json_length is None else _length(json_length, len(body))
    fields = parse_json(body[:length])
    rest = _Buffers(body[length:])
    inputs: dict[str, Tensor] = {}
    for entry in _objects(fields.get("inputs"), "inputs"):
        name = _text(entry.get("name"), "the name of an input")
        if name in inputs:
            raise ServingError(400, f"the input {name!r} is there twice")
        inputs[name] = _read_tensor(entry, name, rest, max_elements)
    rest.check_empty()
    parameters = _mapping(fields.get("parameters", {}), "parameters")
    outputs = [*_objects(fields.get("outputs", []), "outputs")]
    names = tuple(_text(entry.get("name"), "the name of an output") for entry in outputs)
    return InferenceRequest(
        id=_text(fields.get("id", ""), "id"),
        inputs=inputs,
        outputs=names,
        is_binary={
            name: _mapping(entry.get("parameters", {}), "parameters").get("binary_data") is True
            for name, entry in zip(names, outputs, strict=True)
        },
        binary_by_default=parameters.get("binary_data_output") is True,
        parameters=parameters,
    )


def write_inference_response(
    fields: Mapping[str, Any], outputs: Mapping[str, list[str]], request: InferenceRequest
) -> tuple[bytes, int | None]:
    """The body of a response.

    Args:
        fields: of its JSON beside the outputs.
        outputs: tensors of type BYTES with one axis.
        request: says which are wanted, and how.

    Returns:
        The body, and the length of the JSON in it where the extension is used.
    """
    entries, buffers = [], []
    for name, texts in outputs.items():
        entry: dict[str, Any] = {"name": name, "datatype": "BYTES", "shape": [len(texts)]}
        if request.is_binary.get(name, request.binary_by_default):
            data = b"".join(map(_element, texts))
            entry["parameters"] = {"binary_data_size": len(data)}
            buffers.append(data)
        else:
            entry["data"] = texts
        entries.append(entry)
    text = json_text({**fields, "outputs": entries}).encode()
    return b"".join([text, *buffers]), len(text) if buffers else None


class _Buffers:
    """The bytes behind the JSON, taken from the front."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: Any, name: str) -> bytes:
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ServingError(400, f"binary_data_size of {name!r} is {size!r:.50}")
        data = self._data[self._at : self._at + size]
        if len(data) != size:
            raise ServingError(400, f"{name!r} should have {size} bytes, and {len(data)} are left")
        self._at += size
        return data

    def check_empty(self) -> None:
        left = len(self._data) - self._at
        if left:
            raise ServingError(400, f"{left} bytes behind the tensors belong to none of them")


def _read_tensor(entry: Mapping[str, Any], name: str, rest: _Buffers, max_elements: int) -> Tensor:
    datatype, shape = entry.get("datatype"), entry.get("shape")
    if datatype not in _TYPES:
        raise ServingError(400, f"{name!r} is of type {datatype!r:.50}, expected one of {_TYPES}")
    if not isinstance(shape, list) or len(shape) > _MAX_AXES or not all(map(_is_axis, shape)):
        raise ServingError(400, f"the shape of {name!r} is {shape!r:.100}")
    count = math.prod(shape)
    if count > max_elements:
        raise ServingError(422, f"{name!r} has {count} elements, and the most is {max_elements}")
    parameters = _mapping(entry.get("parameters", {}), f"parameters of {name!r}")
    if "binary_data_size" in parameters:
        data = rest.take(parameters["binary_data_size"], name)
        values = [*_elements(data, name)] if datatype == "BYTES" else _floats(data, name)
    else:
        values = [*_flat(entry.get("data"), name)]
        expected = str if datatype == "BYTES" else (int, float)
        if any(isinstance(one, bool) or not isinstance(one, expected) for one in values):
            raise ServingError(400, f"the data of {name!r} is not of type {datatype}")
        if datatype == "FP32":
            values = [_float(one, name) for one in values]
    if len(values) != count:
        raise ServingError(400, f"{name!r} has {len(values)} elements, and its shape is {shape}")
    return Tensor(datatype=datatype, shape=tuple(shape), values=values)


def _elements(data: bytes, name: str) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise ServingError(400, f"{name!r} ends within the length of an element")
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if at + size > len(data):
            raise ServingError(400, f"{name!r} ends within an element")
        yield data[at : at + size]
        at += size


def _floats(data: bytes, name: str) -> list[float]:
    if len(data) % 4:
        raise ServingError(400, f"{name!r} has {len(data)} bytes, no multiple of 4")
    return [*struct.unpack(f"<{len(data) // 4}f", data)]


def _float(value: float, name: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ServingError(400, f"{name!r} has a number that FP32 does not hold") from None


def _element(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data


def _flat(data: Any, name: str, depth: int = 0) -> Iterator[Any]:
    if not isinstance(data, list) or depth > _MAX_AXES:
        raise ServingError(400, f"{name!r} has no list `data` and no binary_data_size")
    for one in data:
        if isinstance(one, list):
            yield from _flat(one, name, depth + 1)
        else:
            yield one


def _length(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit()) or int(text[:20]) > most:
        raise ServingError(400, f"{LENGTH_HEADER} is {text[:40]!r}, and the body has {most} bytes")
    return int(text)


def _objects(value: Any, name: str) -> Iterable[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ServingError(400, f"{name} is no list of objects")
    return value


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ServingError(400, f"{name} is no object")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or len(value) > 1000:
        raise ServingError(400, f"{name} is {value!r:.100}, expected a text")
    return value


def _is_axis(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
