"""Compare whole answers of greedy and beam search, judged by the reference model.

Two correct implementations may choose different tokens where two are equal up to rounding, and then
write different texts. Equality of tokens is therefore reported and not judged: an answer is judged
by the score that it loses according to the reference model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from convert.verify.metrics import ANSWER_FACTOR, SPACING, Row, log_softmax, token_agreement
from convert.verify.stages import Inputs, torch_inputs
from florence_jax.generation import GenerationConfig, generate
from florence_jax.model import Model, Params

if TYPE_CHECKING:
    from transformers import Florence2ForConditionalGeneration


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The result of one way of decoding.

    Attributes:
        sequences: int[B, T], the decoder start token first.
        scores: float[B], mean log-probability; None for transformers' greedy decoding.
    """

    sequences: np.ndarray
    scores: np.ndarray | None


Answers = dict[str, Answer]


def settings(new_tokens: int) -> dict[str, GenerationConfig]:
    """Greedy decoding, and beam search as the published models do it."""
    return {
        "greedy": GenerationConfig(max_new_tokens=new_tokens),
        "beam-3": GenerationConfig(
            max_new_tokens=new_tokens, num_beams=3, no_repeat_ngram_size=3, early_stopping=True
        ),
    }


def jax_answers(model: Model, params: Params, inputs: Inputs, new_tokens: int) -> Answers:
    """Our answers, through the public `generate`."""
    answers = {}
    for name, config in settings(new_tokens).items():
        out = generate(
            model,
            params,
            pixel_values=inputs.pixel_values,
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            config=config,
        )
        scores = np.asarray(out.sequence_scores, np.float64)
        answers[name] = Answer(sequences=np.asarray(out.sequences), scores=scores)
    return answers


def torch_answers(
    reference: Florence2ForConditionalGeneration, inputs: Inputs, new_tokens: int
) -> Answers:
    """transformers' answers, in the dtype of `reference`."""
    from transformers import GenerationConfig as TorchGenerationConfig

    model: Any = reference
    text = model.config.text_config
    # transformers would fill every setting that is left at None from here.
    model.generation_config = TorchGenerationConfig()
    answers = {}
    for name, config in settings(new_tokens).items():
        out = model.generate(
            **torch_inputs(reference, inputs),
            generation_config=TorchGenerationConfig(
                max_new_tokens=new_tokens,
                num_beams=config.num_beams,
                no_repeat_ngram_size=config.no_repeat_ngram_size,
                early_stopping=config.early_stopping,
                forced_bos_token_id=text.bos_token_id,
                forced_eos_token_id=text.eos_token_id,
                bos_token_id=text.bos_token_id,
                eos_token_id=text.eos_token_id,
                pad_token_id=text.pad_token_id,
                decoder_start_token_id=text.decoder_start_token_id,
                return_dict_in_generate=True,
                output_scores=True,
            ),
        )
        scores = out.sequences_scores.double().cpu().numpy() if config.num_beams > 1 else None
        answers[name] = Answer(sequences=out.sequences.cpu().numpy(), scores=scores)
    return answers


def losses(
    reference: Florence2ForConditionalGeneration,
    inputs: Inputs,
    answers: Answers,
    best: Answers,
    new_tokens: int,
) -> dict[str, float]:
    """The largest loss of any row of `answers`, as `reference` in float32 judges it.

    Greedy: the most that a chosen token's logit is below the highest one. Beam search: how much
    the mean log-probability differs from that of the truth's own answer.
    """
    greedy, beams = answers["greedy"], answers["beam-3"]
    scores = best["beam-3"].scores
    assert scores is not None, "beam search has scores"
    logits, free, _ = _score(reference, inputs, greedy.sequences, new_tokens)
    chosen = np.take_along_axis(logits, greedy.sequences[:, 1:, None], -1)[..., 0]
    regret = np.where(free, logits.max(-1) - chosen, 0.0)
    logits, free, lengths = _score(reference, inputs, beams.sequences, new_tokens)
    chosen = np.take_along_axis(log_softmax(logits), beams.sequences[:, 1:, None], -1)[..., 0]
    rescored = np.where(free, chosen, 0.0).sum(1) / lengths
    return {
        "greedy": float(regret.max(initial=0.0)),
        "beam-3": float(np.abs(rescored - scores).max()),
    }


def answer_rows(
    dtype: str,
    ours: Answers,
    theirs: Answers,
    truth: Answers,
    lost: dict[str, float],
    logits: tuple[np.ndarray, np.ndarray],
) -> list[Row]:
    """Rows for greedy tokens, beam-3 tokens and beam-3 scores.

    Args:
        lost: `losses` of ours.
        logits: PyTorch's teacher-forced logits in `dtype` and the truth's, which say how exact
            an answer can be: an error of e in every logit costs up to 2 e.
    """
    own, exact = logits
    largest = float(np.abs(own - exact).max())
    bound = max(ANSWER_FACTOR * largest, SPACING[dtype] * float(np.abs(exact).max()))
    rows = [
        Row(
            stage=f"{name} tokens",
            top1=token_agreement(ours[name].sequences, theirs[name].sequences),
            error=lost[name],
            bound=bound,
        )
        for name in ours
    ]
    found, expected, best = (answers["beam-3"].scores for answers in (ours, theirs, truth))
    assert found is not None
    assert expected is not None
    assert best is not None
    return [
        *rows,
        Row(
            stage="beam-3 scores",
            max_abs=float(np.abs(found - expected).max()),
            error=float(np.abs(found - best).max()),
            reference_error=float(np.abs(expected - best).max()),
            bound=bound,
        ),
    ]


def _score(
    reference: Florence2ForConditionalGeneration,
    inputs: Inputs,
    sequences: np.ndarray,
    new_tokens: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of each generated token, which of them were chosen freely, and the answers' lengths.

    float64[B, T - 1, V], bool[B, T - 1] (neither forced nor padding) and int[B].
    """
    import torch

    text: Any = reference.config.text_config
    tokens = sequences[:, 1:]
    with torch.no_grad():
        logits = reference(
            **torch_inputs(reference, inputs),
            decoder_input_ids=torch.tensor(sequences[:, :-1]).long().to(reference.device),
        ).logits
    ended = np.cumsum(tokens == text.eos_token_id, axis=1) - (tokens == text.eos_token_id) > 0
    free = ~ended
    lengths = free.sum(1)
    free[:, 0] = False  # the forced `<s>`
    free[:, new_tokens - 1 :] = False  # the forced `</s>`
    return logits.cpu().numpy(), free, lengths
