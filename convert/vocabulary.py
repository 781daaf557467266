"""Check the number of rows of a token table before it is changed."""

from __future__ import annotations

from pathlib import Path

from florence_jax.checkpoint.resize_vocabulary import resized
from florence_jax.processing import load_tokenizer

__all__ = ["check_rows", "resized"]


def check_rows(rows: int, directory: Path) -> None:
    """Refuse a vocabulary that is too small for the tokenizer in `directory`, if it has one.

    Raises:
        ValueError: tokens would have no row.
    """
    try:
        tokens = load_tokenizer(directory).vocab_size
    except FileNotFoundError:
        return
    if rows < tokens:
        raise ValueError(
            f"a vocabulary of {rows} has no rows for the last {tokens - rows} of the {tokens} "
            f"tokens of the tokenizer in {directory}: choose at least {tokens}"
        )
