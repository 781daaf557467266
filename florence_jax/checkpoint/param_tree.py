"""Parameter trees as paths: "encoder/layers/0/fc1/kernel" names a leaf of the nested dict."""

from collections.abc import Iterator, Mapping
from typing import Any


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
