"""Rematerialisation: what the backward pass recomputes instead of keeping, block by block."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax

from florence_jax.model import Florence2

# "none" keeps everything; "blocks" keeps what enters a block of the vision tower or a layer of the
# text model; "dots" keeps what its linear layers return as well.
Remat = Literal["none", "blocks", "dots"]

_POLICIES = {
    "blocks": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def rematerialise(module: Florence2, remat: Remat) -> None:
    """Set the checkpoint policy of the blocks of a freshly bound module that is being traced."""
    stacks = [module.encoder.layers, module.decoder.layers]
    stacks += [stage.blocks for stage in module.vision_tower.stages]
    for stack in stacks:
        stack.call_wrapper = (
            _as_it_is
            if remat == "none"
            else functools.partial(jax.checkpoint, policy=_POLICIES[remat])
        )


def _as_it_is(call: Callable[..., Any]) -> Callable[..., Any]:
    return call
