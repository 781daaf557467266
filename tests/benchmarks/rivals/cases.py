"""What is measured, which calls of an engine that takes, and how long it must take at least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from florence_jax.model import flops
from florence_jax.model.flops import Work
from tests.benchmarks.ceilings import Ceilings, decoder_step
from tests.benchmarks.rivals.samples import Sample
from tests.benchmarks.rivals.settings import (
    LONG_LIMIT,
    NUM_BEAMS,
    PROMPT_TOKENS,
    START_TOKENS,
    Settings,
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One table.

    Attributes:
        title: what is measured, with `{tokens}` and `{source}` to fill in.
        calls: what an engine is asked to do in each round, one after the other. The result is the
            first one's time; of "step", the difference per token.
        ways: where this library is compared with itself: our call and the label of each way.
    """

    title: str
    calls: tuple[str, ...]
    ways: Mapping[str, str] | None = None


# The first is what the other is compared with.
LIMITS = {
    "limit-exact": "limit of exactly so many",
    "limit-long": f"limit of {LONG_LIMIT:,}",
}

CASES = {
    "vision": Case(title="image tower and projector", calls=("vision",)),
    "encoder": Case(title="encoder, {source} tokens", calls=("encoder",)),
    "greedy": Case(
        title="greedy, {source} tokens in, {tokens} out, encoder included", calls=("greedy",)
    ),
    "beam": Case(
        title=f"beam {NUM_BEAMS}, no-repeat 3, {{source}} tokens in, {{tokens}} out, "
        "encoder included",
        calls=("beam",),
    ),
    "step": Case(
        title=f"decoder step of beam {NUM_BEAMS}: {{tokens}} tokens less {START_TOKENS}, "
        "over the difference",
        calls=("beam", "beam-start"),
    ),
    "images": Case(
        title=f"image to {{tokens}} tokens, beam {NUM_BEAMS}, resizing included",
        calls=("images",),
    ),
    "limit": Case(
        title=f"beam {NUM_BEAMS}, answers that end by themselves after {{tokens}} tokens",
        calls=("limit",),
        ways=LIMITS,
    ),
}
# Measured apart from these, in fresh processes: how long a first result takes.
START = "start"
CASE_NAMES = (*CASES, START)


def title(name: str, settings: Settings) -> str:
    """The heading of a case's table."""
    return CASES[name].title.format(tokens=settings.new_tokens, source=_source(settings))


def case_samples(
    name: str, settings: Settings, rounds: Mapping[str, Sequence[Sample]]
) -> list[Sample]:
    """A case's samples from those of its calls, round by round."""
    if name != "step":
        return list(rounds[CASES[name].calls[0]])
    tokens = settings.new_tokens - START_TOKENS
    return [
        whole.per_token(start, tokens)
        for whole, start in zip(rounds["beam"], rounds["beam-start"], strict=True)
    ]


def parts(name: str, settings: Settings, batch: int) -> list[Work]:
    """A case's work, in parts that cannot overlap."""
    config, source = settings.model_config(), _source(settings)
    side = settings.image_size

    def one_step(beams: int, position: int) -> Work:
        return decoder_step(
            config,
            batch=batch,
            beams=beams,
            encoder_tokens=source,
            position=position,
            item=settings.item_bytes,
        )

    def answer(beams: int) -> list[Work]:
        # After the last free token `</s>` is forced: no step has to find it.
        steps = [one_step(beams, position) for position in range(settings.new_tokens - 1)]
        return [*encoder, flops.cross_attention_cache(config, source).times(batch), *steps]

    vision = [flops.vision(config, side, side).times(batch)]
    encoder = [flops.encoder(config, source).times(batch)]
    match name:
        case "vision":
            return vision
        case "encoder":
            return encoder
        case "greedy":
            return answer(1)
        case "beam" | "limit":
            return answer(NUM_BEAMS)
        case "step":
            return [one_step(NUM_BEAMS, settings.new_tokens // 2)]
        case "images":
            return [*vision, *answer(NUM_BEAMS)]
    raise ValueError(f"unknown case {name!r}, expected one of {', '.join(CASES)}")


def floor_seconds(name: str, settings: Settings, batch: int, ceilings: Ceilings) -> float:
    """The least time that the measured ceilings allow."""
    return sum(ceilings.seconds(work) for work in parts(name, settings, batch))


def _source(settings: Settings) -> int:
    side = settings.image_size
    return settings.model_config().num_image_tokens(side, side) + PROMPT_TOKENS
