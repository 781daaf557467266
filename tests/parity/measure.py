"""How far each stage is from the truth, and from PyTorch; prints the README's parity table.

    python -m tests.parity.measure --model base --size 768 --dtype float32 --dtype bfloat16

The truth is transformers' native class in float64. Weights are random with spread-out logits. Ours
should be no further from the truth than PyTorch in the same dtype is.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from convert.reference import native_model, spread_params
from convert.stages import compare, jax_stages, random_inputs, torch_stages
from florence_jax import config as configs
from florence_jax.model import Model


@dataclass(frozen=True, kw_only=True)
class Row:
    """Largest absolute differences at one stage, and the largest value there, for scale."""

    stage: str
    dtype: str
    ours_to_truth: float
    pytorch_to_truth: float
    ours_to_pytorch: float
    largest: float


def measure(
    preset: str, size: tuple[int, int], dtypes: list[str], *, batch: int = 1, seed: int = 0
) -> Iterator[Row]:
    """Every stage's errors, dtype by dtype."""
    import torch

    config = configs.PRESETS[preset]()
    params = spread_params(config, seed)
    inputs = random_inputs(
        Model(config=config), batch=batch, size=size, text=12, target=8, seed=seed
    )
    mask = inputs.attention_mask
    reference = native_model(config, params)
    truth = torch_stages(reference.double(), inputs)
    for dtype in dtypes:
        # Through float32, whose values the weights are, not by rounding float64 anew.
        theirs = torch_stages(reference.float().to(getattr(torch, dtype)), inputs)
        weights = jax.tree.map(lambda leaf, dtype=dtype: jnp.asarray(leaf, dtype), params)
        ours = jax_stages(Model(config=config, dtype=dtype), weights, inputs)
        del weights
        columns = (
            compare(ours, truth, mask),
            compare(theirs, truth, mask),
            compare(ours, theirs, mask),
        )
        for stage, expected in truth.items():
            to_truth, own_to_truth, to_pytorch = (column[stage] for column in columns)
            yield Row(
                stage=stage,
                dtype=dtype,
                ours_to_truth=to_truth,
                pytorch_to_truth=own_to_truth,
                ours_to_pytorch=to_pytorch,
                largest=float(np.abs(expected).max()),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny", choices=configs.PRESETS)
    parser.add_argument("--size", type=int, default=768, help="pixels a side (default: 768)")
    parser.add_argument("--dtype", action="append", choices=("float32", "bfloat16", "float16"))
    options = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")
    size = (options.size, options.size)
    heads = "model,size,stage,dtype,ours to truth,PyTorch to truth,ours to PyTorch,largest value"
    print("| " + " | ".join(heads.split(",")) + " |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in measure(options.model, size, options.dtype or ["float32"]):
        print(
            f"| {options.model} | {options.size} | {row.stage} | {row.dtype} "
            f"| {row.ours_to_truth:.2g} | {row.pytorch_to_truth:.2g} | {row.ours_to_pytorch:.2g} "
            f"| {row.largest:.3g} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
