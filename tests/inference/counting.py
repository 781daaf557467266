"""What a block of code makes jax do: runs of the image encoder, traces and compilations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax.monitoring
import pytest

from florence_jax.inference import compiled

_TRACED = "/jax/core/compile/jaxpr_trace_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def counted_images() -> Iterator[list[int]]:
    """The batch size of every run of the image encoder."""
    runs: list[int] = []
    real = compiled.encode_jit

    def counting(model, params, pixel_values):
        runs.append(len(pixel_values))
        return real(model, params, pixel_values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "encode_jit", counting)
        yield runs


@contextlib.contextmanager
def counted_programs() -> Iterator[list[str]]:
    """Everything that jax traces, compiles or takes from its cache on disk in this process.

    Not our functions alone: an operation outside of jit is a program too.
    """
    events: list[str] = []

    def listen(event: str, seconds: float, **details: object) -> None:
        if event in (_TRACED, _COMPILED):
            events.append(f"{event.rsplit('/', 1)[1]} {details.get('fun_name')}")

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
