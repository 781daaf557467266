"""The parameter tree by paths, and whether a set of paths and shapes is a config's."""

from collections.abc import Iterator, Mapping
from typing import Any

from florence_jax.checkpoint.errors import ErrorCollector, clip
from florence_jax.checkpoint.param_shapes import param_shapes
from florence_jax.checkpoint.pytorch.infer_sizes import check_reason
from florence_jax.config import Florence2Config


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) of a nested dict, paths joined by "/"."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def insert(tree: dict[str, Any], path: str, leaf: Any) -> None:
    """Put `leaf` at `path` of a nested dict, the reverse of `flatten`."""
    *parents, last = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = leaf


def check_parameters(
    config: Florence2Config, shapes: Mapping[str, tuple[int, ...]], problems: ErrorCollector
) -> None:
    """Record every parameter that is missing, unexpected or of a shape that is not `config`'s."""
    if not check_reason(config, len(shapes), problems):
        return
    expected = param_shapes(config)
    for path in sorted(expected.keys() - shapes.keys()):
        problems.add("missing parameters", path)
    for path, shape in shapes.items():
        if path not in expected:
            problems.add("parameters that this config has no place for", path)
        elif shape != expected[path]:
            problems.add(
                "parameters of the wrong shape",
                path,
                f"is {clip(str(list(shape)))}, expected {list(expected[path])}",
            )
