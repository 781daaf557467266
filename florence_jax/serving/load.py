"""Callers that ask a server at the same time, and how long each of them waits."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx  # pyright: ignore[reportMissingImports]

_SCORE_TOLERANCE = 1e-4
_TIMEOUT = 120.0


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request of a caller.

    Attributes:
        image: an image file.
        prompt: a task with its text.
        expected: the pipeline's own result as JSON has it; None where the server should refuse.
        leaves: the caller goes away before the answer is there.
    """

    image: bytes
    prompt: str
    expected: Any
    leaves: bool = False

    def body(self) -> bytes:
        """The body of `POST /predict`."""
        image = base64.b64encode(self.image).decode()
        return json.dumps({"image": image, "prompt": self.prompt}).encode()


@dataclass(kw_only=True)
class Load:
    """What the callers saw.

    Attributes:
        seconds: of the whole run.
        waited: seconds until each answer, of requests with status 200.
        statuses: how many requests had which; "left" are those whose caller went away.
        wrong: answers that are not the pipeline's, and refusals where it has an answer.
    """

    seconds: float = 0.0
    waited: list[float] = field(default_factory=list)
    statuses: Counter[int | str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return len(self.waited) / self.seconds

    def percentile(self, share: float) -> float:
        """The time within which this share of the answers came, in seconds."""
        ordered = sorted(self.waited)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


async def run_load(
    url: str,
    asked: Sequence[Asked],
    *,
    callers: int,
    requests: int | None = None,
    seconds: float = math.inf,
    seed: int = 0,
) -> Load:
    """Let `callers` ask for random requests, each the next when it has an answer.

    Args:
        url: of the server.
        asked: what they choose among.
        callers: at the same time.
        requests: of all callers; None: until the time is over.
        seconds: after which no request begins.
        seed: of what is chosen.
    """
    load, chosen = Load(), random.Random(seed)
    left = math.inf if requests is None else requests
    bodies = {id(one): one.body() for one in asked}
    began = time.monotonic()

    async def call(client: httpx.AsyncClient) -> None:
        nonlocal left
        while left > 0 and time.monotonic() - began < seconds:
            left -= 1
            await _ask(client, url, chosen.choice(asked), bodies, load)

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=_TIMEOUT, trust_env=False) as client:
        await asyncio.gather(*(call(client) for _ in range(callers)))
    load.seconds = time.monotonic() - began
    return load


def is_same_result(found: Any, expected: Any) -> bool:
    """Whether results are equal, scores up to float32's last digits: batches differ in size."""
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and found.keys() == expected.keys()
            and all(
                _is_close(found[key], value)
                if "scores" in key
                else is_same_result(found[key], value)
                for key, value in expected.items()
            )
        )
    return found == expected


def _is_close(found: Any, expected: Any) -> bool:
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(_is_close, found, expected))
    return math.isclose(found, expected, rel_tol=_SCORE_TOLERANCE)


async def _ask(
    client: httpx.AsyncClient, url: str, asked: Asked, bodies: dict[int, bytes], load: Load
) -> None:
    started = time.monotonic()
    call = client.post(
        f"{url}/predict", content=bodies[id(asked)], headers={"Content-Type": "application/json"}
    )
    if asked.leaves:
        try:
            async with asyncio.timeout(0.02):
                await call
        except TimeoutError:
            load.statuses["left"] += 1
            return
        load.statuses[200] += 1
        return
    response = await call
    load.statuses[response.status_code] += 1
    if response.status_code == 200:
        load.waited.append(time.monotonic() - started)
    if asked.expected is None:
        if response.status_code != 422:
            load.wrong.append(f"{response.status_code} for an image that cannot be read")
    elif response.status_code != 200:
        load.wrong.append(f"{response.status_code} {response.text[:200]}")
    elif not is_same_result(response.json(), asked.expected):
        load.wrong.append(f"{asked.prompt}: {response.text[:200]}")
