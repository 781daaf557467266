"""The state of a training run, as one pytree."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

Flat = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Parameters by path ("encoder/layers/0/fc1/kernel") and everything that belongs to them.

    Attributes:
        step: int32[], updates done.
        trainable: float32 parameters that train, LoRA factors included.
        frozen: the other parameters, in `model.frozen_dtype`.
        opt_state: optax's, for `trainable` alone.
        ema: float32 moving average of `trainable`, or None.
        failed_at: int32[], the step whose loss, gradient or update was not finite, or -1. From
            there on updates change nothing, so the last good state is still here when the host
            looks.
    """

    step: jax.Array
    trainable: Flat
    frozen: Flat
    opt_state: Any
    ema: Flat | None
    failed_at: jax.Array


def new_state(
    trainable: Mapping[str, jax.Array],
    frozen: Mapping[str, jax.Array],
    optimizer: optax.GradientTransformation,
    *,
    with_ema: bool,
) -> TrainState:
    """The state before the first step. Trainable parameters become float32."""
    masters = {path: jnp.asarray(leaf, jnp.float32) for path, leaf in trainable.items()}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=masters,
        frozen=dict(frozen),
        opt_state=optimizer.init(masters),
        # A copy: the step donates its state, and one buffer cannot be donated twice.
        ema=jax.tree.map(jnp.copy, masters) if with_ema else None,
        failed_at=jnp.full((), -1, jnp.int32),
    )


def not_finite(state: TrainState) -> list[str]:
    """The names of the leaves of a state that hold a number that is not finite."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    good = jax.device_get(jax.jit(_all_finite)([leaf for _, leaf in leaves]))
    return [name for name, is_good in zip(names, good, strict=True) if not is_good]


def _all_finite(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])
