"""Faults to plant into a training program, each with what it is."""

from functools import partial

import jax
import jax.numpy as jnp

from florence_jax.model.bart import Encoder
from florence_jax.model.davit import ChannelAttention, DaViT, WindowAttention
from florence_jax.training.losses import IGNORE, shift_right, summed_loss


def shifted_inputs(patch):
    """Labels shifted right twice: a token sees those before the one before it."""

    def twice(labels, **ids):
        return shift_right(shift_right(labels, **ids), **ids)

    patch.setattr("florence_jax.training.step.shift_right", twice)


def shifted_targets(patch):
    """Labels shifted once more by the loss, as one for decoders alone does."""

    def ahead(hidden, labels, layer, config, locations):
        later = jnp.roll(labels, -1, axis=-1).at[..., -1].set(IGNORE)
        return summed_loss(hidden, later, layer, config, locations)

    patch.setattr("florence_jax.training.step.summed_loss", ahead)


def scaled(kind, factor, patch):
    """The gradient of everything below a module's output is multiplied."""
    call = kind.__call__

    @jax.custom_vjp
    def identity(x):
        return x

    identity.defvjp(lambda x: (x, None), lambda _, gradient: (factor * gradient,))
    patch.setattr(kind, "__call__", lambda self, *args, **kw: identity(call(self, *args, **kw)))


# The loss falls as it should, and nothing is learnt that could be generated.
LABELS = {
    "decoder inputs shifted twice": shifted_inputs,
    "targets shifted once more": shifted_targets,
}
# Some learn the squares all the same.
GRADIENTS = {
    "the tower's negated": partial(scaled, DaViT, -1.0),
    "the encoder's negated": partial(scaled, Encoder, -1.0),
    "channel attention's negated": partial(scaled, ChannelAttention, -1.0),
    "none through channel attention": partial(scaled, ChannelAttention, 0.0),
    "half of window attention's": partial(scaled, WindowAttention, 0.5),
}
