"""Compare with stored outputs of the original implementation, which no current Python can run.

The file is an `.npz` with one group of arrays per case, `CASE/NAME`: `input_ids` and
`decoder_input_ids` (int[B, L], int[B, T]), `pixel_seed` and `image_size` (pixels are
`RandomState(pixel_seed).standard_normal((B, 3, S, S))`, float32), and any of the outputs
`vision_last`, `image_features`, `encoder_last_hidden_state`, `logits`, `greedy`, `beam3` and
`beam3_scores`. The answers were generated with `no_repeat_ngram_size=3`.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from convert.verify.metrics import Row, stored_row, token_agreement
from convert.verify.stages import Inputs, Stages, jax_stages
from florence_jax.generation import GenerationConfig, generate
from florence_jax.model import Model, Params

_INPUTS = ("input_ids", "decoder_input_ids", "pixel_seed", "image_size")
# Mean log-probabilities of logits that agree to STORED_TOLERANCE, which reach about ten.
_SCORE_TOLERANCE = 1e-4


def compare_with_original(model: Model, params: Params, archive: Path) -> list[Row]:
    """Rows of every case in `archive`, their stages prefixed by the case's name.

    Raises:
        ValueError: the file is not such an archive.
    """
    return [
        row for case, stored in _read(archive).items() for row in _rows(model, params, case, stored)
    ]


def _read(archive: Path) -> dict[str, dict[str, np.ndarray]]:
    cases: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    try:
        with np.load(archive, allow_pickle=False) as arrays:
            for key in arrays.files:
                case, _, name = key.rpartition("/")
                cases[case][name] = arrays[key]
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{archive} is not a readable .npz of arrays: {error}") from error
    for case, stored in cases.items():
        missing = [name for name in _INPUTS if name not in stored]
        if missing:
            raise ValueError(
                f"{archive}: case {case!r} lacks {', '.join(missing)}; see "
                "convert/verify/original.py for the form"
            )
    if not cases:
        raise ValueError(f"{archive} holds no arrays")
    return cases


def _rows(model: Model, params: Params, case: str, stored: dict[str, np.ndarray]) -> list[Row]:
    inputs = _inputs(stored)
    rows = [
        stored_row(f"{case} {stage}", values.reshape(stored[name].shape), stored[name])
        for name, stage, values in _stored_stages(model, jax_stages(model, params, inputs))
        if name in stored
    ]
    for name, beams in (("greedy", 1), ("beam3", 3)):
        if name not in stored:
            continue
        out = generate(
            model,
            params,
            pixel_values=inputs.pixel_values,
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            config=GenerationConfig(
                num_beams=beams,
                no_repeat_ngram_size=3,
                max_new_tokens=stored[name].shape[1] - 1,
            ),
        )
        label = "greedy" if beams == 1 else "beam-3"
        agreement = token_agreement(np.asarray(out.sequences), stored[name])
        rows.append(
            Row(stage=f"{case} {label} tokens", top1=agreement, error=1 - agreement, bound=0.0)
        )
        if f"{name}_scores" in stored:
            difference = np.abs(np.asarray(out.sequence_scores) - stored[f"{name}_scores"]).max()
            rows.append(
                Row(
                    stage=f"{case} {label} scores",
                    max_abs=float(difference),
                    error=float(difference),
                    bound=_SCORE_TOLERANCE,
                )
            )
    return rows


def _stored_stages(model: Model, stages: Stages) -> list[tuple[str, str, np.ndarray]]:
    """(name in the archive, our name, our values)."""
    last_stage = f"vision/stage{len(model.config.vision.depths) - 1}"
    last_layer = f"encoder/layer{model.config.text.encoder_layers - 1}"
    names = {
        "vision_last": last_stage,
        "image_features": "projector",
        "encoder_last_hidden_state": last_layer,
        "logits": "logits",
    }
    return [(name, stage, stages[stage]) for name, stage in names.items()]


def _inputs(stored: dict[str, np.ndarray]) -> Inputs:
    ids, size = stored["input_ids"].astype(np.int32), int(stored["image_size"])
    noise = np.random.RandomState(int(stored["pixel_seed"]))
    pixels = noise.standard_normal((len(ids), 3, size, size)).astype(np.float32)
    return Inputs(
        pixel_values=np.moveaxis(pixels, 1, -1),
        input_ids=ids,
        attention_mask=np.ones_like(ids),
        decoder_input_ids=stored["decoder_input_ids"].astype(np.int32),
    )
