"""Keywords of a call: check their names and values, and apply decoding settings."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

import jax
import numpy as np

from florence_jax.generation import GenerationConfig

OnError = Literal["raise", "return"]

# jax keeps 32 bits: a larger seed would draw what a smaller one draws.
_SEEDS = 1 << 32
# Other programs' names for the same thing.
_ALIASES = {
    "beams": "num_beams",
    "max_length": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "new_tokens": "max_new_tokens",
    "generator": "seed",
    "key": "seed",
    "random_state": "seed",
    "rng": "seed",
    "sample": "do_sample",
    "prompt": "prompts",
    "task": "prompts",
    "tasks": "prompts",
    "image": "images",
    "box": "region",
    "bbox": "region",
    "regions": "region",
    "classes": "text",
    "texts": "text",
    "label": "labels",
    "device_map": "mesh",
    "load_in_8bit": "quantize",
    "quantization_config": "quantize",
    "tokenizer": "processor",
    "torch_dtype": "dtype",
}
_SETTINGS = tuple(field.name for field in dataclasses.fields(GenerationConfig))


def with_overrides(
    settings: GenerationConfig, overrides: Mapping[str, Any], own: Collection[str]
) -> GenerationConfig:
    """`settings` with the fields in `overrides` replaced.

    Args:
        settings: what applies where nothing is said.
        overrides: keywords of a call, fields of `GenerationConfig`.
        own: the call's own keywords, for the message.

    Raises:
        TypeError: `settings` of another type, or a keyword that does not exist; the message lists
            those that do.
        ValueError: a value that a field cannot have.
    """
    if not isinstance(settings, GenerationConfig):
        raise TypeError(
            f"generation is {settings!r:.200}, expected a florence_jax.GenerationConfig: pass its "
            "fields as keywords, such as num_beams=3"
        )
    check_keywords(overrides, own, _SETTINGS)
    return dataclasses.replace(settings, **overrides)


def check_keywords(
    given: Iterable[str], own: Collection[str], settings: Collection[str] = ()
) -> None:
    """Refuse keywords that are in neither list.

    Args:
        given: names.
        own: the call's own keywords.
        settings: names of decoding settings, where the call takes them too.

    Raises:
        TypeError: one is in neither; the message lists those that there are.
    """
    known = [*own, *settings]
    for name in given:
        if name in known:
            continue
        close = difflib.get_close_matches(name, [*known, *_ALIASES], n=1)
        found = _ALIASES.get(close[0], close[0]) if close else None
        hint = f" Did you mean {found!r}?" if found in known else ""
        more = f", and the decoding settings {', '.join(settings)}" if settings else ""
        raise TypeError(f"there is no keyword {name!r}.{hint} There are {', '.join(own)}{more}")


def check_on_error(on_error: str) -> None:
    """Refuse an `on_error` that is none.

    Raises:
        ValueError: neither "raise" nor "return".
    """
    if on_error not in ("raise", "return"):
        raise ValueError(f'on_error must be "raise" or "return", got {on_error!r}')


def sampling_key(settings: GenerationConfig, seed: int | None) -> jax.Array | None:
    """The key of what sampling draws; None where nothing is drawn.

    Raises:
        ValueError: a seed that is no integer of 32 bits, or sampling without one.
    """
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int | np.integer)):
        raise ValueError(f"seed must be an integer, got {seed!r}")
    if seed is not None and not 0 <= seed < _SEEDS:
        raise ValueError(f"seed is {seed}, expected an integer from 0 to {_SEEDS - 1}")
    if not settings.do_sample:
        return None
    if seed is None:
        raise ValueError(
            "do_sample=True draws tokens at random and needs a seed: pass seed=0 (--seed 0), or "
            "do_sample=False for the most likely answer"
        )
    return jax.random.key(int(seed))
