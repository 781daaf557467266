"""`BodyLimit`: bodies that are too large or too slow are refused while they arrive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from florence_jax.serving.errors import ServingError
from florence_jax.serving.settings import ServerSettings


class BodyLimit:
    """ASGI middleware: counts the bytes of each body, and of all that are held together.

    What it refuses is raised as a `ServingError` where the application reads the body.
    """

    def __init__(self, app: Any, settings: ServerSettings) -> None:
        self._app, self._settings = app, settings
        self._held = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own, whole = 0, False
        started = time.monotonic()
        declared = _declared_length(dict(scope["headers"]))

        async def limited() -> Any:
            nonlocal own, whole
            if whole:
                return await receive()
            self._check(declared)
            left = started + self._settings.upload_timeout - time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, left))
            except TimeoutError:
                raise ServingError(
                    408, "the request did not arrive within "
                    f"{self._settings.upload_timeout:g} s: send less, or faster",
                ) from None  # fmt: skip
            if message["type"] == "http.request":
                size = len(message.get("body", b""))
                own, self._held = own + size, self._held + size
                scope["state"]["body_bytes"] = own
                self._check(own)
                whole = not message.get("more_body", False)
            return message

        try:
            await self._app(scope, limited, send)
        finally:
            self._held -= own

    def _check(self, size: int) -> None:
        most = self._settings.max_body_bytes
        if size > most:
            raise ServingError(
                413, f"the request has more than {most} bytes: send fewer or smaller images"
            )
        if self._held > self._settings.max_upload_bytes:
            raise ServingError(503, "too much is being uploaded: try again later", retry_after=1)


def _declared_length(headers: Mapping[bytes, bytes]) -> int:
    text = headers.get(b"content-length", b"")
    return int(text) if text.isdigit() else 0
