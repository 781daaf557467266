"""Ahead-of-time compilation of a pipeline's functions, before the first request."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np

from florence_jax.generation import Constraint, GenerationConfig
from florence_jax.generation.inputs import prompt_buckets
from florence_jax.inference.compiled import JitFns
from florence_jax.inference.image_encoder import Normalizer
from florence_jax.processing import TASKS, ImageConfig, build_prompt
from florence_jax.runtime.terminal_bar import terminal_bar

T = TypeVar("T")


def usual_prompts() -> list[str]:
    """Each of the 15 tasks with its region, if it takes one, and without a text."""
    region = "<loc_0><loc_0><loc_999><loc_999>"
    return [
        build_prompt(token, region=region if task.takes == "region" else None)
        for token, task in TASKS.items()
    ]


def warm_up(
    programs: JitFns,
    image_config: ImageConfig,
    *,
    image_sizes: Sequence[tuple[int, int]],
    prompt_lengths: Sequence[int],
    batch_sizes: Sequence[int],
    settings: GenerationConfig,
    constraints: Sequence[Constraint | None],
    progress: bool,
) -> dict[str, float]:
    """Compile every combination; see `Florence2Pipeline.warmup`.

    Args:
        image_config: how pixels are normalized.
        constraints: what answers are confined to, with a start for one row; None for free answers.
    """
    normalize = Normalizer(image_config)

    def encode(batch: int, size: tuple[int, int]) -> jax.ShapeDtypeStruct:
        normalize(np.zeros((batch, *size, 3), np.uint8))
        return programs.compile_encode(batch, size)

    config = programs.model.config
    positions = config.text.max_position_embeddings
    buckets = {
        size: prompt_buckets(prompt_lengths, config.num_image_tokens(*size), positions)
        for size in image_sizes
    }
    seconds: dict[str, float] = {}
    total = sum(
        len(batch_sizes) * (1 + len(lengths) * len(constraints)) for lengths in buckets.values()
    )
    with terminal_bar(total=total, unit="program", shown=progress) as bar:

        def timed(name: str, compile: Callable[[], T]) -> T:
            bar.set_description(name)
            started = time.monotonic()
            result = compile()
            seconds[name] = time.monotonic() - started
            bar.update()
            return result

        for size, batch in itertools.product(buckets, batch_sizes):
            images = f"{size[0]}x{size[1]}, batch {batch}"
            features = timed(f"encode {images}", functools.partial(encode, batch, size))
            for length, constraint in itertools.product(buckets[size], constraints):
                kind = "generate" if constraint is None else "generate constrained"
                timed(
                    f"{kind} {images}, prompt {length}",
                    functools.partial(
                        programs.compile_generate, batch, features, length, settings, constraint
                    ),
                )
    return seconds
