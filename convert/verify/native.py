"""Compare with transformers' native class on the same weights: every stage, then whole answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from convert.verify.answers import Answers, answer_rows, jax_answers, losses, torch_answers
from convert.verify.metrics import Row, stage_row
from convert.verify.reference import native_model
from convert.verify.stages import Inputs, Stages, attended, jax_stages, torch_stages
from florence_jax.config import Florence2Config
from florence_jax.model import Model, Params
from florence_jax.runtime.terminal_bar import terminal_bar

if TYPE_CHECKING:
    from transformers import Florence2ForConditionalGeneration

Ours = Callable[[str], tuple[Model, Params]]


@dataclass(frozen=True, kw_only=True)
class _Results:
    """Results of one implementation: end to end, each stage on the truth's input, and answers."""

    stages: Stages
    alone: Stages
    answers: Answers


def compare_with_native(
    config: Florence2Config,
    params: Params,
    inputs: Inputs,
    dtypes: Sequence[str],
    *,
    new_tokens: int,
    ours: Ours | None = None,
    torch_device: str = "cpu",
    progress: bool = False,
) -> dict[str, list[Row]]:
    """Rows for each dtype, in order of computation.

    Args:
        config, params: the checkpoint in float32; transformers' class gets these.
        inputs: one batch for both.
        dtypes: any of "float32", "bfloat16" and "float16".
        new_tokens: length of the generated answers; 0 generates none.
        ours: (model, parameters) in a dtype, to test other ones than `params` against these.
        torch_device: where PyTorch computes.
        progress: show a bar on stderr.
    """
    import torch

    make_ours = ours or (lambda dtype: _cast(config, params, dtype))
    rows: dict[str, list[Row]] = {}
    with terminal_bar(total=2 * len(dtypes) + 1, shown=progress) as bar:
        bar.set_description("PyTorch float64")
        exact = native_model(config, params).double().to(torch_device)
        truth = _run_torch(exact, inputs, None, new_tokens)
        del exact
        bar.update()
        for dtype in dtypes:
            bar.set_description(f"JAX {dtype}")
            mine = _run_ours(*make_ours(dtype), inputs, truth.stages, new_tokens)
            bar.update()
            bar.set_description(f"PyTorch {dtype}")
            # From the weights again: a model that was cast to halves cannot be cast back.
            native = native_model(config, params).to(torch_device, getattr(torch, dtype))
            theirs = _run_torch(native, inputs, truth.stages, new_tokens)
            del native
            rows[dtype] = _stage_rows(dtype, mine, theirs, truth.stages, inputs.attention_mask)
            if new_tokens:
                judge = native_model(config, params).to(torch_device)
                lost = losses(judge, inputs, mine.answers, truth.answers, new_tokens)
                logits = theirs.stages["logits"], truth.stages["logits"]
                rows[dtype] += answer_rows(
                    dtype, mine.answers, theirs.answers, truth.answers, lost, logits
                )
            bar.update()
    return rows


def _cast(config: Florence2Config, params: Params, dtype: str) -> tuple[Model, Params]:
    weights = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    return Model(config=config, dtype=dtype), weights


def _run_ours(
    model: Model, params: Params, inputs: Inputs, truth: Stages, new_tokens: int
) -> _Results:
    return _Results(
        stages=jax_stages(model, params, inputs),
        alone=jax_stages(model, params, inputs, truth),
        answers=jax_answers(model, params, inputs, new_tokens) if new_tokens else {},
    )


def _run_torch(
    reference: Florence2ForConditionalGeneration,
    inputs: Inputs,
    truth: Stages | None,
    new_tokens: int,
) -> _Results:
    return _Results(
        stages=torch_stages(reference, inputs),
        alone={} if truth is None else torch_stages(reference, inputs, truth),
        answers=torch_answers(reference, inputs, new_tokens) if new_tokens else {},
    )


def _stage_rows(
    dtype: str, ours: _Results, theirs: _Results, truth: Stages, mask: np.ndarray
) -> list[Row]:
    return [
        stage_row(
            name,
            dtype,
            ours=attended(name, ours.stages[name], mask),
            theirs=attended(name, theirs.stages[name], mask),
            truth=attended(name, exact, mask),
            ours_alone=attended(name, ours.alone[name], mask),
            theirs_alone=attended(name, theirs.alone[name], mask),
        )
        for name, exact in truth.items()
    ]
