"""Fetch an image from an allowed host, and from nowhere else.

A name may resolve to an address inside of the network that the server stands in: each address is
checked, and the connection goes to the very address that was checked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Collection, Iterable
from typing import Any
from urllib.parse import urlsplit

import httpcore  # pyright: ignore[reportMissingImports]

from florence_jax.serving.errors import ServingError

_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_CONNECT_SECONDS = 5.0

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether an address is on the internet, and not private, loopback, link-local or the like."""
    if isinstance(address, ipaddress.IPv6Address):
        for inner in (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())):
            if inner is not None and not is_public(inner):
                return False
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return address.is_global and not address.is_multicast


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Resolves a name itself, and connects to an address that may be connected to."""

    def __init__(self, may_connect: Callable[[Address], bool]) -> None:
        self._may_connect = may_connect
        # Without anyio, httpcore types it as a placeholder.
        self._inner: Any = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> Any:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
        if not addresses or not all(map(self._may_connect, addresses)):
            raise ServingError(422, f"{host} is inside of a private network: images come from "
                               "public addresses alone")  # fmt: skip
        return await self._inner.connect_tcp(
            str(addresses[0]),
            port,
            timeout=timeout,
            local_address=local_address,
            socket_options=socket_options,
        )

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


class ImageFetcher:
    """Fetches images from allowed hosts; proxies of the environment are not used."""

    def __init__(
        self,
        allowed_hosts: Collection[str],
        *,
        max_bytes: int,
        seconds: float,
        may_connect: Callable[[Address], bool] = is_public,
    ) -> None:
        """
        Args:
            allowed_hosts: "name", for the usual ports, or "name:port".
            max_bytes: of an image.
            seconds: for all of it.
            may_connect: whether an address is allowed.
        """
        self._allowed = frozenset(host.lower() for host in allowed_hosts)
        self._max_bytes, self._seconds = max_bytes, seconds
        self._may_connect = may_connect

    async def __call__(self, url: str) -> bytes:
        """The content behind `url`.

        Raises:
            ServingError: 422, the host is not allowed or answers with anything but the content;
                413, it is too large; 502, the host cannot be reached.
        """
        self._check(url)
        try:
            async with (
                asyncio.timeout(self._seconds),
                httpcore.AsyncConnectionPool(
                    network_backend=_CheckedBackend(self._may_connect)
                ) as pool,
            ):
                return await self._read(pool, url)
        except TimeoutError:
            raise ServingError(502, f"the image did not come within {self._seconds:g} s: send the "
                               "image itself") from None  # fmt: skip
        except (OSError, httpcore.NetworkError, httpcore.TimeoutException,
                httpcore.ProtocolError) as error:  # fmt: skip
            raise ServingError(
                502, f"the image cannot be fetched ({type(error).__name__}): send the image itself"
            ) from error

    def _check(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            port, host = parts.port, (parts.hostname or "").rstrip(".").lower()
        except ValueError:
            raise ServingError(422, "image_url is no URL") from None
        if parts.scheme not in _PORTS or not host or not url.isascii() or parts.username:
            raise ServingError(422, "image_url must be http://HOST/... or https://HOST/...")
        named = f"{host}:{port}" if port not in (None, _PORTS[parts.scheme]) else host
        if named not in self._allowed:
            raise ServingError(
                422, f"images are not fetched from {named[:200]!r}: send the image itself, or "
                "start the server with --allow-host",
            )  # fmt: skip

    async def _read(self, pool: Any, url: str) -> bytes:
        limits = {"connect": _CONNECT_SECONDS, "read": self._seconds, "write": self._seconds}
        async with pool.stream(
            "GET",
            url,
            headers={"User-Agent": "florence-jax", "Accept": "image/*", "Connection": "close"},
            extensions={"timeout": limits},
        ) as response:
            if response.status != 200:
                kind = "redirects" if 300 <= response.status < 400 else "anything but 200"
                raise ServingError(
                    422, f"the image's host answered with status {response.status}, and {kind} is "
                    "not followed: name the image's final address",
                )  # fmt: skip
            content = bytearray()
            async for part in response.aiter_stream():
                content += part
                if len(content) > self._max_bytes:
                    raise ServingError(413, f"the image behind image_url has more than "
                                       f"{self._max_bytes} bytes")  # fmt: skip
            return bytes(content)
