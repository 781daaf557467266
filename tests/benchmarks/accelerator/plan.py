"""What a run measures, in which order, and how long each unit may take."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from florence_jax.config import PRESETS, Florence2Config
from tests.benchmarks.accelerator.report import Row
from tests.benchmarks.ceilings import Ceilings

STAGES = ("environment", "correctness", "speed", "training", "profile")
# What the rows are of that hold the ceilings: TFLOP/s and GB/s.
MATMUL, COPY = "matmul {}", "copy"
_ROOM = "tests.benchmarks.accelerator"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large everything is.

    Attributes:
        model, large, small: see `config_of`; `large` has the latency target and trains too, `small`
            is for gradients and determinism.
        side, small_side: of the images, pixels.
        batches: images in a call, one and many, of the tower; greedy and beam search take the
            first and the last.
        new_tokens: of the answers of speed cases.
        task_tokens: by task, the tokens of an answer of usual length.
        parity_rows, parity_tokens: compared with transformers, and generated.
        dtype: of speed, training and profiles; `parity_dtypes` of correctness.
        rounds: timed calls.
        answers: of the shipped model that are compared with the CPU's.
        training: (preset, side, rows of a batch).
        remat: policies that training is measured with.
        rivals: engines of `tests.benchmarks.rivals` beside ours; `torch_steps` of training.
        kernels: how many of the most expensive ones are listed.
    """

    model: str = "base"
    large: str = "large"
    small: str = "tiny"
    side: int = 768
    small_side: int = 64
    batches: tuple[int, ...] = (1, 8, 32)
    new_tokens: int = 64
    task_tokens: Mapping[str, int] = field(
        default_factory=lambda: {"<CAPTION>": 16, "<DETAILED_CAPTION>": 64, "<OD>": 128}
    )
    parity_rows: int = 2
    parity_tokens: int = 20
    dtype: str = "bfloat16"
    parity_dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    rounds: int = 7
    answers: int = 45
    training: tuple[tuple[str, int, int], ...] = (
        ("base", 768, 8),
        ("large", 768, 4),
        ("base", 384, 32),
        ("large", 384, 16),
    )
    remat: tuple[str, ...] = ("none", "dots", "blocks")
    rivals: tuple[str, ...] = ("torch-eager", "torch-sdpa", "torch-compile")
    torch_steps: tuple[str, ...] = ("eager", "compiled")
    matmul_side: int = 16384
    copy_bytes: int = 4 * 2**30
    kernels: int = 10


QUICK = Sizes(
    model="smallest",
    large="smallest",
    small="smallest",
    side=16,
    small_side=16,
    batches=(1,),
    new_tokens=6,
    task_tokens={"<CAPTION>": 6},
    parity_rows=1,
    parity_tokens=6,
    dtype="float32",
    parity_dtypes=("float32",),
    rounds=1,
    answers=1,
    training=(("smallest", 16, 1),),
    remat=("none",),
    rivals=("torch-sdpa",),
    torch_steps=("eager",),
    matmul_side=256,
    copy_bytes=2**20,
    kernels=10,
)


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a unit is told.

    Attributes:
        sizes: how large everything is.
        platform: "cpu", "cuda" or "tpu".
        folder: for weights and traces.
        values: results of the rows so far, by what they are of.
        quick: everything runs in one process.
    """

    sizes: Sizes
    platform: str
    folder: str
    values: Mapping[str, float] = field(default_factory=dict)
    quick: bool = False

    @property
    def threads(self) -> int:
        """One in the quick form: on tiny models torch's threads spend their time waiting."""
        return 1 if self.quick else os.cpu_count() or 1

    @property
    def ceilings(self) -> Ceilings | None:
        """Those of the sizes' dtype; None where they have not been measured."""
        flops = self.values.get(MATMUL.format(self.sizes.dtype))
        copied = self.values.get(COPY)
        if flops is None or copied is None:
            return None
        return Ceilings(flops_per_second=flops * 1e12, bytes_per_second=copied * 1e9)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A part of a stage that runs, fails and ends by itself.

    Attributes:
        stage, name: what it is called.
        seconds: after which it is ended.
        run: makes its rows.
    """

    stage: str
    name: str
    seconds: float
    run: Callable[[Context], Iterator[Row]]

    @property
    def key(self) -> str:
        """Its name among those of all stages."""
        return f"{self.stage}/{self.name}"


def units(stage: str, sizes: Sizes) -> list[Unit]:
    """The units of a stage, in order."""
    return importlib.import_module(f"{_ROOM}.{stage}").units(sizes)


def config_of(name: str) -> Florence2Config:
    """The sizes of a preset, or of "smallest", the model of the training tests."""
    if name == "smallest":
        without_data_packages()
        from tests.training.small import CONFIG

        return CONFIG
    return PRESETS[name]()


def without_data_packages() -> None:
    """Let `florence_jax.training` be imported where only its data and settings cannot be.

    The package asks for all that a run needs. A machine that is lent may lack what reads data and
    settings, which the step does not use.
    """
    for name in ("grain", "tyro"):
        if importlib.util.find_spec(name) is None:
            absent = types.ModuleType(name)
            absent.__spec__ = importlib.machinery.ModuleSpec(name, None)
            sys.modules[name] = absent
