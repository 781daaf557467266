"""How float32 is multiplied: in float32, or in fewer bits that accelerators compute faster.

jax is imported where it is used: the trainer's settings name a precision before jax is loaded.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

MatmulPrecision = Literal["default", "high", "highest"]


def check_matmul_precision(precision: str) -> None:
    """
    Raises:
        ValueError: it is none of `MatmulPrecision`.
    """
    if precision not in get_args(MatmulPrecision):
        raise ValueError(
            f"matmul_precision is {precision!r}, expected one of "
            f"{', '.join(map(repr, get_args(MatmulPrecision)))}"
        )


def precision_scope(
    dtype: str, precision: MatmulPrecision
) -> contextlib.AbstractContextManager[None]:
    """Applies `precision` to the products and convolutions that are traced inside.

    It replaces jax's own setting for programs of float32, and changes no other program.
    """
    if dtype != "float32":
        return contextlib.nullcontext()
    import jax

    return jax.default_matmul_precision(precision)


def current_precision() -> str | None:
    """jax's setting where a function is being traced; None where there is none."""
    import jax

    return jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]


def same_precision(precision: str | None) -> contextlib.AbstractContextManager[None]:
    """A scope of what `current_precision` was.

    The rules of a `jax.custom_vjp` are traced when it is differentiated, perhaps outside of the
    scope that it was called in.
    """
    if precision is None:
        return contextlib.nullcontext()
    import jax

    return jax.default_matmul_precision(precision)


def at_model_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    """Trace `function`, whose first argument is a `Model`, in that model's `precision_scope`."""

    @functools.wraps(function)
    def scoped(model: Any, *arguments: Any) -> Any:
        with model.precision_scope():
            return function(model, *arguments)

    return scoped
