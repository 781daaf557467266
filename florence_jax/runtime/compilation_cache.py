"""Compiled programs kept on disk, so that the next process need not compile them again.

Only `Florence2Pipeline`, exported pipelines and the command line turn this on. Importing
`florence_jax`, `florence_jax.load` and `florence_jax.generate` leave jax's configuration alone.
"""

from __future__ import annotations

import functools
import os
import tempfile
import warnings
from pathlib import Path

import jax

VARIABLE = "FLORENCE_JAX_COMPILATION_CACHE"

# jax's own default is one second, under which many a program would be compiled every time.
_MIN_COMPILE_SECONDS = 0.2


def use_compilation_cache() -> Path | None:
    """Let jax keep what it compiles in `$XDG_CACHE_HOME/florence-jax/xla`, by default below
    `~/.cache`, from now on and for the whole process.

    The variable FLORENCE_JAX_COMPILATION_CACHE names another directory, or says "off". A cache that
    jax was given already (`jax_compilation_cache_dir`, JAX_COMPILATION_CACHE_DIR, or disabled by
    `jax_enable_compilation_cache`) is left as it is. A directory that cannot be written to is
    warned about once, and nothing is kept. Nothing is ever removed: delete the directory at will.

    Returns:
        The directory, or None where this function chose none.
    """
    chosen = os.environ.get(VARIABLE, "")
    if chosen == "off" or _is_configured():
        return None
    directory = _writable(chosen, os.environ.get("XDG_CACHE_HOME", ""))
    if directory is None:
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)
    return directory


def _is_configured() -> bool:
    directory = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    enabled = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    return directory is not None or "JAX_COMPILATION_CACHE_DIR" in os.environ or not enabled


@functools.cache  # a warning is said once
def _writable(chosen: str, xdg_cache_home: str) -> Path | None:
    try:
        if chosen:
            directory = Path(chosen).expanduser()
        else:
            # The XDG specification ignores a relative path.
            given = Path(xdg_cache_home)
            root = given if given.is_absolute() else Path.home() / ".cache"
            directory = root / "florence-jax" / "xla"
        # Whoever can write here can make this process run their code: nobody else may.
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return directory
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        warnings.warn(
            f"compiled programs are not kept: no directory can be written to ({error}). Set "
            f"{VARIABLE} to one, or to 'off'",
            stacklevel=4,
        )
        return None
