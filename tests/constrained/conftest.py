"""The tokenizer that answer grammars are compiled for."""

from tests.processing.conftest import tokenizer

__all__ = ["tokenizer"]
