"""Training and fine-tuning as a library; `florence-jax train --help` is its command."""

import importlib.util

# Packages of the extra `train` that the library itself does not require.
_missing = [
    name
    for name in ("grain", "optax", "pyarrow", "scipy", "tyro")
    if importlib.util.find_spec(name) is None
]
if _missing:
    raise ModuleNotFoundError(
        f"training needs packages that are not installed ({', '.join(_missing)}): "
        'run pip install "florence-jax[train]", or pip install -e ".[train]" in a checkout'
    )
