"""The references that this room is compared with, loaded once."""

import warnings

import pytest

from florence_jax.processing import load_tokenizer
from tests.shared_data import shared_path


class Named:
    """An object under a short repr: hypothesis prints the arguments of a failing example."""

    def __init__(self, wrapped):
        self._wrapped = wrapped

    def __getattr__(self, name):
        return getattr(self._wrapped, name)

    def __repr__(self):
        return f"<{type(self._wrapped).__name__}>"


@pytest.fixture(scope="session")
def tokenizer():
    """Our tokenizer on the published files."""
    return load_tokenizer(shared_path("processor"))


@pytest.fixture(scope="session")
def native_processor():
    """transformers' own Florence2Processor on the published files."""
    folder = shared_path("processor")
    with warnings.catch_warnings():
        # transformers' imports, not ours, deprecate things at will.
        warnings.simplefilter("ignore")
        from transformers import AutoProcessor

        return Named(AutoProcessor.from_pretrained(folder))


@pytest.fixture(scope="session")
def original_processor():
    """The model card's processor, as the differences from transformers' that define it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoProcessor

        from tests.processing.original_reference import OriginalProcessor

        return OriginalProcessor(AutoProcessor.from_pretrained(shared_path("processor")))
