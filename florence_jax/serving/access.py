"""`Access`: ASGI middleware that checks the API key, and logs and counts every request.

A line of the log is JSON: when, who, what, how long, which status. It never holds images, prompts'
texts or answers.
"""

from __future__ import annotations

import hmac
import re
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from florence_jax.runtime.jsonl import json_text
from florence_jax.serving.errors import CALLER_GONE
from florence_jax.serving.metrics import Metrics

# Asked by load balancers, which have no key.
_OPEN = ("/v2/health/live", "/v2/health/ready")
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


class Access:
    """The outermost layer of the application."""

    def __init__(
        self, app: Any, metrics: Metrics, api_key: str | None, log: Callable[[str], None]
    ) -> None:
        """
        Args:
            app: the ASGI application.
            metrics: counts the requests.
            api_key: what callers have to send; None: anybody may ask.
            log: takes one line for each request.
        """
        self._app, self._metrics, self._log = app, metrics, log
        self._key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, started, status, sent = dict(scope["headers"]), time.monotonic(), CALLER_GONE, 0
        request_id = _request_id(headers)
        # Handlers add to it what the log should have.
        scope["state"] = state = {**scope.get("state", {}), "log": {}, "body_bytes": 0}

        async def noted(message: Any) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                ]
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            if self._key is None or scope["path"] in _OPEN or self._has_key(headers):
                await self._app(scope, receive, noted)
            else:
                await _unauthorized(noted)
        except BaseException:
            status = 500 if status == CALLER_GONE else status
            raise
        finally:
            seconds = time.monotonic() - started
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self._metrics.count(path, status, seconds)
            record = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "request_id": request_id,
                "client": (scope.get("client") or ("",))[0],
                "method": scope["method"],
                "path": scope["path"][:200],
                "status": status,
                "milliseconds": round(1000 * seconds, 1),
                "bytes_in": state["body_bytes"],
                "bytes_out": sent,
                **state["log"],
            }
            if scope["path"] not in _OPEN:
                self._log(json_text(record))

    def _has_key(self, headers: Mapping[bytes, bytes]) -> bool:
        assert self._key is not None
        given = headers.get(b"x-api-key", b"")
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if not given and scheme.lower() == b"bearer":
            given = token.strip()
        return hmac.compare_digest(given, self._key)


async def _unauthorized(send: Any) -> None:
    body = json_text(
        {"error": "the API key is missing or wrong: send it as `Authorization: Bearer KEY`"}
    ).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"www-authenticate", b"Bearer"),
        # Its body is not read.
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _request_id(headers: Mapping[bytes, bytes]) -> str:
    """The caller's, where it is harmless; a new one otherwise."""
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
