"""Decoding settings given as keywords of a call: which there are, and what was probably meant."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from typing import Any

from florence_jax.generation import GenerationConfig

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
}


def with_overrides(
    settings: GenerationConfig, overrides: Mapping[str, Any], own: Collection[str]
) -> GenerationConfig:
    """`settings` with the fields in `overrides` replaced.

    Args:
        settings: what applies where nothing is said.
        overrides: keywords of a call, fields of `GenerationConfig`.
        own: the call's own keywords, for the message.

    Raises:
        TypeError: a keyword that does not exist; the message lists those that do.
        ValueError: a value that a field cannot have.
    """
    fields = [field.name for field in dataclasses.fields(GenerationConfig)]
    for name in overrides:
        if name not in fields:
            known = [*own, *fields]
            close = difflib.get_close_matches(name, [*known, *_ALIASES], n=1)
            found = _ALIASES.get(close[0], close[0]) if close else None
            hint = f" Did you mean {found!r}?" if found in known else ""
            raise TypeError(
                f"there is no keyword {name!r}.{hint} There are {', '.join(own)}, and the decoding "
                f"settings {', '.join(fields)}"
            )
    return dataclasses.replace(settings, **overrides)
