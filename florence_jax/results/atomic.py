"""Write a text file aside and rename it: whoever reads it sees the old content or the new."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by a UTF-8 file of `text`.

    Raises:
        OSError: it cannot be written, with the path; what was there before is still there.
    """
    # A short name of its own: the picture's may be as long as the file system allows.
    aside = path.with_name(f".incomplete-{secrets.token_hex(8)}")
    try:
        # Half of a surrogate pair, as in a file name that is no UTF-8, has no encoding.
        aside.write_bytes(text.encode("utf-8", "backslashreplace"))
        os.replace(aside, path)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        aside.unlink(missing_ok=True)
