"""Fine-tuning: `python -m train.main --help`."""

import importlib.util

# Of the extra `train`, the packages that are no part of the library's own requirements.
_missing = [
    name
    for name in ("grain", "optax", "pyarrow", "pydantic", "scipy", "yaml")
    if importlib.util.find_spec(name) is None
]
if _missing:
    raise ModuleNotFoundError(
        f"training needs packages that are not here ({', '.join(_missing)}): "
        'run pip install -e ".[train]" in the checkout'
    )
