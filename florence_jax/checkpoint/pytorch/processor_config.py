"""The `post_processor_config` that transformers' Florence-2 processor needs to parse answers.

`Florence2Processor.post_process_generation` reads its rules from processor_config.json and fails on
a file without them, as many fine-tunes have. The rules are the same for every Florence-2; the
bundled model's file holds them.
"""

from __future__ import annotations

import json
from typing import Any

from florence_jax.checkpoint.model_directory import BUNDLED

FILE = "processor_config.json"
_KEY = "post_processor_config"


def post_processor_config() -> dict[str, Any]:
    """The rules, as transformers' converted checkpoints have them."""
    return json.loads((BUNDLED["shapes"] / FILE).read_text(encoding="utf-8"))[_KEY]


def completed_processor(name: str, content: bytes) -> bytes:
    """The content of a checkpoint's file `name`: with the rules added, where it is a
    processor_config.json that lacks them, and else as it is."""
    if name != FILE:
        return content
    try:
        fields = json.loads(content)
    except ValueError:
        return content  # its reader reports what is wrong with it
    if not isinstance(fields, dict) or fields.get(_KEY):
        return content
    return json.dumps(fields | {_KEY: post_processor_config()}, indent=2).encode() + b"\n"
