"""Values as JSON text that is UTF-8 whatever they hold."""

from __future__ import annotations

import json
from typing import Any


def json_text(value: Any, *, indent: int | None = None) -> str:
    """The value as JSON, letters as they are.

    Half of a surrogate pair, as text that was cut and file names that are no UTF-8 have it, has no
    encoding: a value that holds one is written in ASCII, and reads back as it was.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text
