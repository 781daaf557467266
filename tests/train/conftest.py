"""Training programs share the compilation settings of the training library's tests."""

from tests.training.conftest import _compiled_quickly, compiled_on_disk

__all__ = ["_compiled_quickly", "compiled_on_disk"]
