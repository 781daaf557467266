"""`ServerSettings`: batching, limits and manners of a server."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

MEBIBYTE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How a server batches requests, and what it refuses.

    Attributes:
        batch_size: requests in one compiled call, on each device.
        max_delay: seconds that a request waits for others to share its batch.
        max_queue: requests under way at the same time; further ones get status 503.
        timeout: seconds until a request without an answer gets status 504.
        upload_timeout: seconds in which a request has to arrive whole.
        max_body_bytes: size of a request's body.
        max_upload_bytes: size of all bodies that are held at the same time.
        max_pixels: of an image.
        max_count: requests in one call.
        max_connections: open at the same time.
        cache_bytes: image features that are kept for later requests about the same images.
        reader_threads: images decoded at the same time.
        allowed_hosts: "name" or "name:port" of the hosts that images may be fetched from.
        api_key: what callers have to send; None: anybody may ask.
        free_prompt: as in a pipeline's call.

    Raises:
        ValueError: a number that is out of range.
    """

    batch_size: int = 8
    max_delay: float = 0.005
    max_queue: int = 256
    timeout: float = 60.0
    upload_timeout: float = 30.0
    max_body_bytes: int = 32 * MEBIBYTE
    max_upload_bytes: int = 1024 * MEBIBYTE
    max_pixels: int = 50_000_000
    max_count: int = 64
    max_connections: int = 1024
    cache_bytes: int = 256 * MEBIBYTE
    reader_threads: int = min(4, os.cpu_count() or 1)
    allowed_hosts: tuple[str, ...] = ()
    api_key: str | None = dataclasses.field(default=None, repr=False)
    free_prompt: bool = False

    def __post_init__(self) -> None:
        may_be_zero = ("max_delay", "cache_bytes")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            least = 0 if field.name in may_be_zero else 1e-9
            if not least <= value < float("inf"):
                raise ValueError(
                    f"{field.name} is {value}, expected a number "
                    f"{'of at least' if field.name in may_be_zero else 'above'} 0"
                )
        if self.api_key is not None and (not self.api_key or not self.api_key.isascii()):
            raise ValueError("the API key is empty or not ASCII: choose another")
