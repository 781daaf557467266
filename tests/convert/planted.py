"""Faults for `convert.verify` to find: wrong weights, wrong norms, a wrong decoding step."""

from __future__ import annotations

import copy
import dataclasses
import functools
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from convert.verify.metrics import Row, first_over
from convert.verify.native import compare_with_native
from convert.verify.reference import random_params_with_spread_logits
from convert.verify.stages import random_inputs
from florence_jax import config as configs
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.config import DaViTConfig
from florence_jax.model import Florence2, Model
from florence_jax.model.layers import LayerNorm
from florence_jax.ops import layer_norm_gelu


@functools.cache
def sound():
    """A model with spread-out logits, and a batch of two prompts of different lengths.

    Two stages of DaViT instead of four: most of the time here is XLA's compiling.
    """
    vision = DaViTConfig(
        embed_dims=(8, 16),
        depths=(1, 2),
        num_heads=(1, 2),
        num_groups=(2, 4),
        patch_sizes=(7, 3),
        patch_strides=(4, 2),
        patch_paddings=(3, 1),
        patch_prenorm=(False, True),
    )
    config = dataclasses.replace(configs.tiny(), vision=vision)
    params = random_params_with_spread_logits(config, seed=5)
    inputs = random_inputs(Model(config=config), batch=2, size=(40, 56), text=7, target=6, seed=6)
    return config, params, inputs


def rows_with(params=None, model=None, dtype="float32", new_tokens=0) -> list[Row]:
    """The comparison's rows when our side has `params` or `model` instead of the sound ones."""
    config, right, inputs = sound()
    ours = (model or Model(config=config), right if params is None else params)
    found = compare_with_native(
        config, right, inputs, [dtype], new_tokens=new_tokens, ours=lambda _: ours
    )
    return found[dtype]


def located(rows: list[Row]) -> str | None:
    first = first_over(rows)
    return None if first is None else first.stage


def stage_of(path: str) -> str:
    """The stage that the parameter `path` belongs to."""
    parts = path.split("/")
    if parts[0] == "vision_tower":
        return "/".join([f"vision/stage{parts[2]}", *_block(parts[3:])])
    if parts[0] in ("encoder", "decoder"):
        return f"{parts[0]}/" + (f"layer{parts[2]}" if parts[1] == "layers" else "embeddings")
    return parts[0]


def _block(parts: list[str]) -> list[str]:
    return [f"block{parts[1]}", parts[2]] if parts[0] == "blocks" else ["embed"]


def changed(path: str, change) -> dict:
    """The sound parameters with `change(array)` in place of the one at `path`."""
    params = copy.copy(sound()[1])
    node, *parents = params, *path.split("/")
    for key in parents[:-1]:
        node[key] = copy.copy(node[key])
        node = node[key]
    node[parents[-1]] = change(np.array(node[parents[-1]]))
    return params


def kernels(*, square: bool = False) -> dict[str, list[str]]:
    """Paths of the matrices and convolutions of each stage."""
    found: dict[str, list[str]] = {}
    for path, leaf in flatten(sound()[1]):
        is_square = leaf.ndim == 2 and leaf.shape[0] == leaf.shape[1]
        if path.endswith("kernel") and (is_square or not square):
            found.setdefault(stage_of(path), []).append(path)
    return found


@dataclass(frozen=True, kw_only=True)
class WrongEpsilon(Model):
    """A model of which one LayerNorm has another epsilon."""

    norm: str
    epsilon: float

    def bind(self, params):
        module = super().bind(params)
        node = module
        for name in self.norm.split("/"):
            node = getattr(node, name)
        assert type(node) is LayerNorm
        epsilon = self.epsilon

        class Wrong(LayerNorm):
            def __call__(self, x):
                right = layer_norm_gelu.LAYER_NORM_EPSILON
                layer_norm_gelu.LAYER_NORM_EPSILON = epsilon
                try:
                    return super().__call__(x)
                finally:
                    layer_norm_gelu.LAYER_NORM_EPSILON = right

        node.__class__ = Wrong
        return module


@dataclass(frozen=True, kw_only=True)
class WrongStep(Model):
    """A model that decodes each token as if it stood one position further on."""

    def bind(self, params):
        module = super().bind(params)

        class Wrong(Florence2):
            def decode_step(self, tokens, index, *rest):
                return super().decode_step(tokens, jnp.maximum(index - 1, 0), *rest)

        module.__class__ = Wrong
        return module


def model_with(kind, **fault):
    return kind(config=sound()[0], **fault)
