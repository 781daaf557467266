"""The HTTP application: its routes, and the layers around them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from fastapi import FastAPI  # pyright: ignore[reportMissingImports]
from starlette.exceptions import HTTPException  # pyright: ignore[reportMissingImports]
from starlette.requests import (  # pyright: ignore[reportMissingImports]
    ClientDisconnect,
)
from starlette.requests import Request as HttpRequest  # pyright: ignore[reportMissingImports]
from starlette.responses import Response as HttpResponse  # pyright: ignore[reportMissingImports]

import florence_jax
from florence_jax.inference.requests import Request, broadcast_requests
from florence_jax.processing import TASKS
from florence_jax.results.rows import result_to_json
from florence_jax.runtime.jsonl import json_text
from florence_jax.serving.access import Access
from florence_jax.serving.body_limit import BodyLimit
from florence_jax.serving.errors import CALLER_GONE, ServingError, refusal
from florence_jax.serving.fetch import ImageFetcher
from florence_jax.serving.inference_protocol import (
    MODEL,
    MODEL_METADATA,
    SERVER_METADATA,
    VERSION,
    infer_response,
    read_infer_body,
)
from florence_jax.serving.metrics import Metrics
from florence_jax.serving.predict_body import PredictBody, read_predict_body, refuse_encoding
from florence_jax.serving.service import Answer, Options, Service
from florence_jax.serving.tensors import LENGTH_HEADER

_DESCRIPTION = """\
`POST /predict` answers as the pipeline does. `/v2` is the Open Inference Protocol, for the clients
of KServe and Triton. Errors are `{"error": "..."}` with the status that says whose they are.
"""
_MODEL_PATHS = (f"/v2/models/{MODEL}", f"/v2/models/{MODEL}/versions/{VERSION}")


def create_app(
    service: Service,
    *,
    log: Callable[[str], None],
    started: Callable[[], None] = lambda: None,
    fetch: ImageFetcher | None = None,
) -> Any:
    """The ASGI application of a server.

    Args:
        service: answers the requests; entered while the application runs.
        log: takes one line of JSON for each request.
        started: called when the service was entered.
        fetch: gets the images behind URLs; by default within the service's settings.
    """
    settings = service.settings
    fetch = fetch or ImageFetcher(
        settings.allowed_hosts, max_bytes=settings.max_body_bytes, seconds=settings.upload_timeout
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        with service:
            started()
            yield

    app = FastAPI(
        title="florence-jax",
        version=florence_jax.__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
    )
    _handle_errors(app)
    metrics = Metrics(service)
    _add_health(app, service, metrics)
    _Routes(service, metrics, fetch).add_to(app)
    return Access(BodyLimit(app, settings), metrics, settings.api_key, log)


class _Routes:
    """The routes that ask the model."""

    def __init__(self, service: Service, metrics: Metrics, fetch: ImageFetcher) -> None:
        self._service, self._metrics, self._fetch = service, metrics, fetch

    def add_to(self, app: FastAPI) -> None:
        app.post(
            "/predict",
            summary="Answer one or more prompts about an image, as a call of the pipeline does",
            response_class=HttpResponse,
            openapi_extra={"requestBody": {"required": True, "content": _predict_content()}},
        )(self.predict)
        for path in _MODEL_PATHS:
            app.post(
                f"{path}/infer",
                summary="Open Inference Protocol: infer",
                response_class=HttpResponse,
                openapi_extra={"requestBody": {"content": {"application/json": {}}}},
            )(self.infer)

    async def predict(self, http: HttpRequest) -> HttpResponse:
        body, file = await read_predict_body(http)
        if file is None:
            assert body.image_url is not None
            file = await _while_connected(http, self._fetch(body.image_url))
        try:
            requests, several = broadcast_requests(
                file, body.prompt, body.text, body.region, body.labels
            )
        except ValueError as error:
            raise refusal(error) from error
        answers = await self._answer(http, requests, body.options())
        results = [answer.response.result for answer in answers]
        return _json(result_to_json(results if several else results[0]))

    async def infer(self, http: HttpRequest) -> HttpResponse:
        refuse_encoding(http)
        asked, requests, options = await asyncio.to_thread(
            read_infer_body,
            await http.body(),
            http.headers.get(LENGTH_HEADER),
            max_count=self._service.settings.max_count,
        )
        body, length = infer_response(asked, await self._answer(http, requests, options))
        if length is None:
            return HttpResponse(body, media_type="application/json")
        return HttpResponse(
            body,
            media_type="application/octet-stream",
            headers={LENGTH_HEADER: str(length)},
        )

    async def _answer(
        self, http: HttpRequest, requests: Sequence[Request], options: Options
    ) -> list[Answer]:
        log = http.scope["state"]["log"]
        log["requests"] = len(requests)
        log["tasks"] = sorted({one.task if one.task in TASKS else "other" for one in requests})
        answers = await _while_connected(http, self._service.answer(requests, options))
        for request in requests:
            self._metrics.count_answer(request.task)
        notes = sorted({note for answer in answers for note in answer.notes})
        if notes:
            log["image_notes"] = notes
        return answers


async def _while_connected(http: HttpRequest, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work`, which is cancelled when the caller goes away.

    Raises:
        ServingError: the caller went away.
    """

    async def gone() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ServingError(CALLER_GONE, "the caller went away")
    finally:
        for task in (working, waiting):
            task.cancel()


def _add_health(app: FastAPI, service: Service, metrics: Metrics) -> None:
    """The routes that do not ask the model."""

    async def live() -> HttpResponse:
        return HttpResponse()

    async def ready() -> HttpResponse:
        return HttpResponse(status_code=200 if service.state == "ready" else 503)

    async def server() -> HttpResponse:
        return _json(SERVER_METADATA)

    async def model() -> HttpResponse:
        return _json(MODEL_METADATA)

    async def prometheus() -> HttpResponse:
        return HttpResponse(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def add(path: str, route: Any, summary: str) -> None:
        app.get(path, summary=summary, response_class=HttpResponse)(route)

    add("/v2/health/live", live, "200 while the server runs")
    add("/v2/health/ready", ready, "200 while it answers, 503 before and when it ends")
    add("/v2", server, "What the server is")
    add("/metrics", prometheus, "Counters for Prometheus")
    for path in _MODEL_PATHS:
        add(path, model, "The tensors that it takes and gives")
        add(f"{path}/ready", ready, "As /v2/health/ready")


def _handle_errors(app: FastAPI) -> None:
    async def refused(_: Any, error: Any) -> HttpResponse:
        return _json({"error": error.message}, error.status, error.headers)

    async def no_route(_: Any, error: Any) -> HttpResponse:
        message = {404: "there is no such path", 405: "the path takes another method"}
        text = message.get(error.status_code, str(error.detail))
        headers = dict(error.headers or {})
        return _json({"error": f"{text}: /openapi.json lists all"}, error.status_code, headers)

    async def gone(_: Any, error: Exception) -> HttpResponse:
        return _json({"error": "the caller went away"}, CALLER_GONE)

    async def failed(_: Any, error: Exception) -> HttpResponse:
        return _json({"error": f"the server failed ({type(error).__name__})"}, 500)

    app.add_exception_handler(ServingError, refused)
    app.add_exception_handler(HTTPException, no_route)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, failed)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> HttpResponse:
    return HttpResponse(
        json_text(value), status_code=status, headers=headers, media_type="application/json"
    )


def _predict_content() -> dict[str, Any]:
    schema = PredictBody.model_json_schema()
    form = {name: field for name, field in schema["properties"].items() if name != "image"}
    form["image"] = {"type": "string", "format": "binary"}
    return {
        "application/json": {"schema": schema},
        "multipart/form-data": {
            "schema": {"type": "object", "properties": form, "required": ["prompt"]}
        },
    }
