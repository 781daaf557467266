"""What a run carries from step to step, as one pytree."""

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
        trainable: float32 masters of what learns, LoRA factors included.
        frozen: the other parameters, in the dtype that they are kept in.
        opt_state: optax's, for `trainable` alone.
        ema: float32 moving average of `trainable`, or None.
        failed_at: int32[], the step whose loss or gradient was not finite, or -1. From there on
            updates change nothing, so the last good state is still here when the host looks.
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
