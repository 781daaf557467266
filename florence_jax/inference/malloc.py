"""glibc's malloc, set for programs that allocate and free hundreds of megabytes at every call.

By default glibc gives a large buffer back to the system when it is freed, and the next call faults
all of its pages in again. The settings are read when a process starts: only the command line, which
owns its process, applies them, by starting itself again.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import sys

CHOICES = ("default", "tuned")
VARIABLE = "FLORENCE_JAX_MALLOC"

# Freed memory stays with the process (no mmap, no trimming), in one arena, on huge pages.
TUNED = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {
        "hugetlb": 1,
        "mmap_max": 0,
        "trim_threshold": 16 << 30,
        "top_pad": 64 << 20,
        "arena_max": 1,
    }.items()
)
TUNABLES = "GLIBC_TUNABLES"
# A process that may not have the settings (setuid, say) loses them, and would start for ever.
_STARTED = "FLORENCE_JAX_MALLOC_STARTED"


def add_malloc_option(parser: argparse.ArgumentParser) -> None:
    """Add --malloc, which `restart_with_tuned_malloc` takes."""
    parser.add_argument(
        "--malloc",
        dest="malloc_settings",
        choices=CHOICES,
        help="'tuned' keeps large buffers between calls, for speed at the price of memory that is "
        "not given back; where it is not given, Linux with glibc does so if it runs on the CPU and "
        f"GLIBC_TUNABLES is not set. {VARIABLE} says the same",
    )


def restart_with_tuned_malloc(choice: str | None) -> None:
    """Replace this process by itself with malloc settings, once; return where that is not due.

    The process id, standard streams and arguments stay; nothing may have been read or computed yet.

    Args:
        choice: "tuned", "default", or None for FLORENCE_JAX_MALLOC and else what suits the machine.

    Raises:
        ValueError: FLORENCE_JAX_MALLOC says something else.
    """
    if not _is_due(choice or os.environ.get(VARIABLE) or None):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    # `orig_argv` has the interpreter's own options too: -m florence_jax, -W error, ...
    os.execve(
        sys.executable,
        [sys.executable, *sys.orig_argv[1:]],
        {**os.environ, TUNABLES: TUNED, _STARTED: "1"},
    )


def _is_due(choice: str | None) -> bool:
    if choice not in (*CHOICES, None):
        raise ValueError(f"{VARIABLE} is {choice!r}, expected one of {', '.join(CHOICES)}")
    if choice == "default" or TUNABLES in os.environ or _STARTED in os.environ:
        return False
    if not (_is_glibc() and sys.executable):
        return False
    return choice == "tuned" or _runs_on_cpu()


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, OSError, ValueError):  # not POSIX, or another C library
        return False


def _runs_on_cpu() -> bool:
    """Will jax choose the CPU? Judged without importing it: that is as slow as starting anew."""
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms.split(",")[0].strip() == "cpu"
    accelerators = ("jax_plugins", "libtpu")
    return not (
        any(importlib.util.find_spec(name) for name in accelerators)
        or importlib.metadata.entry_points(group="jax_plugins")
    )
