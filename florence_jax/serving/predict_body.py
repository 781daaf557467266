"""The body of `POST /predict`: JSON, or a form with a file."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from typing import Any

from pydantic import (  # pyright: ignore[reportMissingImports]
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
)
from starlette.requests import Request as HttpRequest  # pyright: ignore[reportMissingImports]

from florence_jax.serving.errors import ServingError
from florence_jax.serving.multipart_form import parse_form
from florence_jax.serving.service import Options

# Of a form's fields beside its file: prompts and texts.
_FIELD_BYTES = 64 * 1024
_SEVERAL = ("prompt", "text", "labels")
_JSON_FIELDS = ("region", "constrained", "num_beams", "max_new_tokens", "timeout")

Text = str | list[str]
Region = str | list[float]


class PredictBody(BaseModel):
    """A pipeline's call about one image; the fields are those of `pipe(image, prompt, ...)`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: str | None = Field(None, description="the image file in base64")
    image_url: str | None = Field(None, description="or where it is, on an allowed host")
    prompt: Text = Field(description='a task such as "<OD>", or a list of them')
    text: str | list[str | list[str] | None] | None = Field(
        None, description="the task's text; a list of classes; or a list with one for each prompt"
    )
    region: Region | list[Region | None] | None = Field(
        None, description="[x0, y0, x1, y1] in pixels, or a list with one for each prompt"
    )
    labels: list[str] | list[list[str] | None] | None = Field(
        None, description="with constrained: the labels that the answer may use"
    )
    constrained: bool = Field(False, description="allow only answers that can be read whole")
    num_beams: int | None = Field(None, ge=1)
    max_new_tokens: int | None = Field(None, ge=1)
    timeout: float | None = Field(None, gt=0, description="seconds; at most the server's")

    def options(self) -> Options:
        """What the caller chose beside the requests."""
        return Options(
            constrained=self.constrained,
            num_beams=self.num_beams,
            max_new_tokens=self.max_new_tokens,
            timeout=self.timeout,
        )


async def read_predict_body(http: HttpRequest) -> tuple[PredictBody, bytes | None]:
    """The body of a request, and the image file that it holds, if it holds one.

    Raises:
        ServingError: 400, it cannot be parsed; 415, it is of another type; 422, a field is missing
            or wrong.
    """
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    refuse_encoding(http)
    file: bytes | None = None
    if kind == "application/json":
        fields = await asyncio.to_thread(parse_json, await http.body())
    elif kind == "multipart/form-data":
        fields, file = await asyncio.to_thread(
            _form_fields, await http.body(), http.headers["content-type"]
        )
    else:
        raise ServingError(
            415, f"the body is {kind[:100] or 'of no type'}: send application/json or "
            "multipart/form-data",
        )  # fmt: skip
    try:
        body = PredictBody.model_validate(fields)
    except ValidationError as error:
        raise ServingError(422, _first_problem(error)) from None
    given = [one for one in (body.image, body.image_url, file) if one is not None]
    if len(given) != 1:
        raise ServingError(
            422, f"the request has {len(given)} images: send one of `image` and `image_url`"
        )
    if body.image is not None:
        file = await asyncio.to_thread(decode_base64, body.image, "image")
    return body, file


def refuse_encoding(http: HttpRequest) -> None:
    """Refuse compressed bodies: images are compressed already.

    Raises:
        ServingError: 415.
    """
    encoding = http.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise ServingError(415, f"Content-Encoding is {encoding[:40]!r}: send the body as it is")


def parse_json(data: bytes) -> dict[str, Any]:
    """The object in a body.

    Raises:
        ServingError: 400, there is none.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ServingError(400, f"the body is no JSON ({reason[:200]})") from None
    if not isinstance(value, dict):
        raise ServingError(400, f"the body is a JSON {type(value).__name__}, expected an object")
    return value


def decode_base64(text: str, name: str) -> bytes:
    """The bytes that `text` stands for; a "data:" URL is read as well.

    Raises:
        ServingError: 422, it is no base64.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ServingError(422, f"{name} is no base64: send the image file so encoded") from None


def _form_fields(body: bytes, content_type: str) -> tuple[dict[str, Any], bytes | None]:
    fields: dict[str, Any] = {}
    file: bytes | None = None
    texts: dict[str, list[str]] = {}
    for part in parse_form(body, content_type):
        if not part.is_file:
            if len(part.data) > _FIELD_BYTES:
                raise ServingError(
                    400, f"the field {part.name[:100]!r} has more than {_FIELD_BYTES} bytes"
                )
            texts.setdefault(part.name, []).append(part.text())
        elif part.name != "image" or file is not None:
            raise ServingError(
                422, f"there is a file {part.name[:100]!r}, expected one that is called 'image'"
            )
        else:
            file = part.data
    for name, values in texts.items():
        if len(values) > 1 and name not in _SEVERAL:
            raise ServingError(422, f"{name[:100]!r} is there {len(values)} times: send one")
        if name in _JSON_FIELDS:
            fields[name] = _field_value(name, values[0])
        else:
            fields[name] = values if len(values) > 1 or name == "labels" else values[0]
    return fields, file


def _field_value(name: str, text: str) -> Any:
    """A field that is no text in JSON; a region also as "x0,y0,x1,y1" or as location tokens."""
    if name == "region" and text.lstrip().startswith("<"):
        return text
    try:
        return json.loads(f"[{text}]" if name == "region" and "[" not in text else text)
    except (ValueError, RecursionError):
        raise ServingError(422, f"{name} is {text[:100]!r}, which is no JSON") from None


def _first_problem(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    where = ".".join(str(part) for part in problems[0]["loc"])
    more = f" ({len(problems) - 1} more problems)" if len(problems) > 1 else ""
    return f"{where[:200] or 'the body'}: {problems[0]['msg'][:300]}{more}"
