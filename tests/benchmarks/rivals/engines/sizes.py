"""How large the two measurements of the machine itself are."""

from __future__ import annotations

from tests.benchmarks.rivals.settings import Settings


def matmul_side(settings: Settings) -> int:
    """Of the square matrices: some tenths of a second on a CPU, milliseconds on an accelerator."""
    return 3072 if settings.platform == "cpu" else 16384


def memory_shape(settings: Settings) -> tuple[int, int]:
    """Of the float32 matrix that is read once: 512 MiB or 4 GiB, far beyond every cache."""
    return (32768, 4096) if settings.platform == "cpu" else (262144, 4096)
