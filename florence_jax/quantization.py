"""Weight-only int8 quantization of the decoder and the token table.

A decoding step does little but read these weights. Each output channel keeps a float32 `scale`
beside the `kernel` or `embedding` that it belongs to, which are int8 then; biases, norms, positions
and all of the encoders stay as they are. Activations are never rounded.

The scheme is symmetric and per channel: value = int8 * scale, with the channel's largest at 127
(https://arxiv.org/abs/2004.09602, sections 3.1 and 3.2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, Any]
Quantization = Literal["int8"]

# The quantized weights, and the axis that products sum over, along which a channel's weights lie.
_QUANTIZED = {r"decoder/layers/\d+/.*": ("kernel", 0), "shared|lm_head": ("embedding", 1)}
_LARGEST = 127


def check_quantization(quantization: str | None) -> None:
    """Check the name of a quantization.

    Raises:
        ValueError: it is unknown.
    """
    if quantization not in (None, *get_args(Quantization)):
        offered = ", ".join(map(repr, get_args(Quantization)))
        raise ValueError(f"quantize={quantization!r}, expected {offered} or None")


def quantized(params: Params, quantization: Quantization | None) -> Params:
    """`quantize(params)`, or `params` unchanged if `quantization` is None."""
    check_quantization(quantization)
    return params if quantization is None else quantize(params)


def quantize(params: Params) -> Params:
    """Quantize the weights of the decoder and of the token table to int8.

    Computed on the host, in numpy: the same bits wherever the weights are to run.

    Raises:
        ValueError: they are quantised already.
    """
    if quantized_modules(params):
        raise ValueError("these parameters are quantised already: leave quantize= out")

    def module(path: str, node: Params) -> Params:
        name, axis = _weight_of(path)
        if name not in node:
            return node
        weights = np.asarray(node[name], np.float32)
        largest = np.abs(weights).max(axis, keepdims=True)
        # A channel of zeros has no scale of its own.
        scale = np.where(largest > 0, largest, 1.0) / np.float32(_LARGEST)
        rounded = np.rint(weights / scale).astype(np.int8)
        return node | {
            name: jax.device_put(rounded),
            "scale": jax.device_put(scale.astype(np.float32).squeeze(axis)),
        }

    return _each_module(params, module)


def quantized_modules(params: Mapping[str, Any]) -> tuple[str, ...]:
    """Paths of the modules whose weights have a scale, "decoder/layers/0/fc1"."""
    found = []

    def module(path: str, node: Params) -> Params:
        if "scale" in node and ("kernel" in node or "embedding" in node):
            found.append(path)
        return node

    _each_module(params, module)
    return tuple(found)


def widened(params: Params, dtype: jnp.dtype) -> Params:
    """Replace every int8 kernel by floats of `dtype`.

    Token tables keep theirs: a few rows of them are looked up.
    """

    def module(_: str, node: Params) -> Params:
        if not ("scale" in node and "kernel" in node):
            return node
        kernel = (node["kernel"].astype(jnp.float32) * node["scale"]).astype(dtype)
        return {name: leaf for name, leaf in node.items() if name != "scale"} | {"kernel": kernel}

    return _each_module(params, module)


def _weight_of(path: str) -> tuple[str | None, int]:
    return next(
        (found for pattern, found in _QUANTIZED.items() if re.fullmatch(pattern, path)), (None, 0)
    )


def _each_module(node: Any, change: Any, path: str = "") -> Any:
    """Apply `change(path, dict)` to every dict of the tree that holds arrays."""
    if not isinstance(node, Mapping):
        return node
    below = {
        name: _each_module(sub, change, f"{path}/{name}" if path else name)
        for name, sub in node.items()
    }
    return change(path, below)
