"""Where the shared reference data lies, and the marker of tests that need it."""

import os
from pathlib import Path

import pytest

_ROOT = Path(os.environ.get("FLORENCE_JAX_SHARED", Path(__file__).resolve().parents[2] / "shared"))

# The variable may name the shared folder or the data folder inside it.
SHARED = _ROOT / "data" if _ROOT.joinpath("data").is_dir() else _ROOT


def shared_path(*parts: str) -> Path:
    """A file of the shared data folder, `shared_path("tiny", "native_hf")`."""
    return SHARED.joinpath(*parts)


needs_shared = pytest.mark.skipif(
    not SHARED.joinpath("README.md").is_file(),
    reason=f"needs the reference data in {SHARED} (FLORENCE_JAX_SHARED points elsewhere)",
)
