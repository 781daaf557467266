"""Adapters made by PEFT itself on a small model, and both implementations' answers."""

import contextlib
import copy
import dataclasses
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.verify.reference import native_model, random_params_with_spread_logits
from convert.verify.stages import Inputs, random_inputs, torch_stages
from florence_jax.adapters import Adapter, LowRank
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.checkpoint.pytorch.key_map import match_name
from florence_jax.config import Florence2Config
from florence_jax.model import Model, Params
from tests.small_model import small_model_config

peft = pytest.importorskip("peft", reason='needs PEFT: pip install "florence-jax[test]"')
torch = pytest.importorskip("torch", reason='needs PyTorch: pip install "florence-jax[test]"')

# Large enough to change every answer, small enough that the model does not become chaotic: with
# factors of 0.2 one rounding of one weight moves logits by 4e-4, in PyTorch alone.
FACTOR_STD = 0.1
# Every linear layer that transformers' class has, lm_head apart.
NATIVE_TARGETS = (
    *("q_proj", "k_proj", "v_proj", "out_proj"),
    *("fc1", "fc2", "qkv", "proj", "image_projection"),
)
# In the original naming "proj" would also be the convolutions of the patch embedding.
ORIGINAL_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "qkv", "fn.proj")


def adapter_of_factors(
    factors: Params, alpha: float, alphas: dict[str, float] | None = None, **fields: Any
) -> Adapter:
    """An adapter of a nested dict of `a` [in, r] and `b` [r, out] under the paths of weights."""
    flat, alphas = dict(flatten(factors)), alphas or {}
    paths = sorted({name.rpartition("/")[0] for name in flat})
    modules = {
        path: LowRank(a=flat[f"{path}/a"], b=flat[f"{path}/b"], alpha=alphas.get(path, alpha))
        for path in paths
    }
    return Adapter(modules=modules, **fields)


def base_model(seed: int = 1, **changes: Any) -> tuple[Florence2Config, Params]:
    """Small sizes with spread weights; `changes` go into the config."""
    config = dataclasses.replace(small_model_config(encoder_layers=2, decoder_layers=2), **changes)
    return config, random_params_with_spread_logits(config, seed)


def example(config: Florence2Config) -> Inputs:
    """Two images with prompts of differing lengths."""
    return random_inputs(Model(config=config), batch=2, size=(64, 96), text=6, target=5, seed=1)


def our_logits(config: Florence2Config, params: Params, inputs: Inputs) -> np.ndarray:
    """float32[B, T, V] of this implementation."""
    return np.asarray(
        Model(config=config).logits(
            params,
            pixel_values=inputs.pixel_values,
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            decoder_input_ids=inputs.decoder_input_ids,
        )
    )


def torch_logits(model: Any, inputs: Inputs) -> np.ndarray:
    """float32[B, T, V] of transformers' class, with PEFT's layers in it or without."""
    return torch_stages(model, inputs)["logits"]


def in_original_naming(model: Any) -> Any:
    """A torch module that holds `model`'s own modules under the original names, and no forward.

    The modules are shared: what PEFT merges into them here, `model` computes with.
    """
    root = torch.nn.Module()
    for name, module in list(model.named_modules()):
        match = match_name(f"{name}.weight", "native")
        renamed = None if match is None else match.name("original")
        if renamed is None or not renamed.endswith(".weight"):
            continue  # a container, or image_projection, a bare parameter in the original
        *parents, leaf = renamed.removesuffix(".weight").split(".")
        parent = root
        for part in parents:
            if part not in dict(parent.named_children()):
                parent.add_module(part, torch.nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(leaf, module)
    return root


def wrap(model: Any, **settings: Any) -> Any:
    """PEFT's model around `model`, with random factors instead of a B of zeros."""
    with quiet():
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=FACTOR_STD, generator=generator)
    return wrapped


def save(wrapped: Any, directory: Path) -> Path:
    """Save the adapter as PEFT does."""
    with quiet():
        wrapped.save_pretrained(directory)
    return directory


def load(model: Any, directory: Path) -> Any:
    """PEFT's model around `model` with the adapter in `directory`."""
    with quiet():
        return peft.PeftModel.from_pretrained(model, directory)


def merged_by_peft(wrapped: Any) -> Any:
    """PEFT's merge."""
    with quiet():
        return wrapped.merge_and_unload()


def adapter_of(tmp_path: Path, naming: str = "native", **settings: Any):
    """(config, params, native model, PEFT's wrapper, adapter directory)."""
    config, params = base_model()
    # PyTorch would merge into our arrays: native_model takes them over.
    model = native_model(config, copy.deepcopy(params))
    wrapped = wrap(model if naming == "native" else in_original_naming(model), **settings)
    return config, params, model, wrapped, save(wrapped, tmp_path / "adapter")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """PEFT warns about settings that these tests choose on purpose, and calls deprecated names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def disturb_whole_parameters(wrapped: Any) -> None:
    """Change what PEFT trains beside its factors, once for each tensor in memory."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():  # each tensor once, tied or not
            if parameter.requires_grad and "lora_" not in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def edit_config(directory: Path, **changes: Any) -> None:
    """Change settings in adapter_config.json."""
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def copied(params: Params) -> Params:
    """Parameters that PyTorch may change in place."""
    return copy.deepcopy(params)
