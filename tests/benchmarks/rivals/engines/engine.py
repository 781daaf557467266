"""What an engine offers, and which engines there are."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.benchmarks.rivals.inputs import Inputs
from tests.benchmarks.rivals.settings import Settings

# Does the work once and returns when it is done, with the result: floats, or int[B, T] tokens.
Call = Callable[[], Any]


class NotOffered(Exception):
    """An engine has no such call; not a failure."""


class Engine(Protocol):
    """One implementation with the weights loaded. A call that it does not have is `NotOffered`.

    Calls: "matmul" and "memory" (the machine's ceilings, results not compared), "vision",
    "encoder", "greedy", "beam" (`settings.new_tokens` tokens), "beam-free" (no n-gram banned),
    "beam-start" (`START_TOKENS` tokens) and "images"; this library's alone are "limit-exact" and
    "limit-long".
    """

    def call(self, name: str, inputs: Inputs) -> Call: ...


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """How to find an engine without importing it.

    Attributes:
        label: its name in tables.
        factory: "module:function", called with `Settings`.
        packages: modules that it needs installed.
        platforms: where it can compute.
        compiles: whether its first call compiles, and keeps what it compiled for other processes.
        compared_as: for a call whose results cannot equal ours, the one compared in its place.
    """

    label: str
    factory: str
    packages: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ("cpu", "cuda")
    compiles: bool = False
    compared_as: Mapping[str, str] = field(default_factory=dict)

    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]

    def load(self, settings: Settings) -> Engine:
        module, function = self.factory.split(":")
        return getattr(importlib.import_module(module), function)(settings)


OURS = "jax"
_ROOM = "tests.benchmarks.rivals.engines"
_TORCH = ("torch", "transformers")

ENGINES = {
    OURS: EngineInfo(
        label="florence-jax",
        factory=f"{_ROOM}.ours:Ours",
        platforms=("cpu", "cuda", "tpu"),
        compiles=True,
    ),
    "torch-eager": EngineInfo(
        label="transformers, eager attention",
        factory=f"{_ROOM}.transformers_native:eager",
        packages=_TORCH,
    ),
    "torch-sdpa": EngineInfo(
        label="transformers, SDPA",
        factory=f"{_ROOM}.transformers_native:sdpa",
        packages=_TORCH,
    ),
    "torch-compile": EngineInfo(
        label="transformers, torch.compile",
        factory=f"{_ROOM}.transformers_native:compiled",
        packages=_TORCH,
        compiles=True,
    ),
    "onnxruntime": EngineInfo(
        label="ONNX Runtime",
        factory=f"{_ROOM}.onnx_runtime:OnnxRuntime",
        packages=("onnxruntime", "onnx", "onnxscript", *_TORCH),
    ),
    "ctranslate2": EngineInfo(
        label="CTranslate2",
        factory=f"{_ROOM}.ctranslate2_bart:CTranslate2",
        packages=("ctranslate2", *_TORCH),
        # After banning an n-gram it normalises the rest anew, which transformers' beam search, and
        # so ours, does not: other scores, and in the end other beams.
        compared_as={"beam": "beam-free"},
    ),
}
