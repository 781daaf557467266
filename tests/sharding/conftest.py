"""Processes share what they compile."""

from tests.training.conftest import compiled_on_disk

__all__ = ["compiled_on_disk"]
