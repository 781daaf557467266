"""CTranslate2: the encoder-decoder alone, as a BART of these sizes with these weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.rivals.engines.engine import Call, NotOffered
from tests.benchmarks.rivals.engines.transformers_native import load_model
from tests.benchmarks.rivals.inputs import Inputs
from tests.benchmarks.rivals.settings import NO_REPEAT_NGRAM_SIZE, NUM_BEAMS, START_TOKENS, Settings

# `<unk>`, which no input has.
_UNKNOWN = 3


class CTranslate2:
    """An `Engine` of tokens to tokens.

    CTranslate2 takes `<s>` as a given prefix and stops before `</s>`, which it puts behind each
    answer for the comparison: one decoder step fewer than transformers does.
    """

    def __init__(self, settings: Settings):
        import ctranslate2  # pyright: ignore[reportMissingImports]

        self.settings = settings
        self.text = settings.model_config().text
        folder = Path(settings.cache) / "ctranslate2"
        if not folder.exists():
            convert(settings, folder)
        self.translator = ctranslate2.Translator(
            str(folder),
            device=settings.platform,
            compute_type=settings.dtype,
            inter_threads=1,
            intra_threads=settings.threads,
        )

    def call(self, name: str, inputs: Inputs) -> Call:
        if name not in ("greedy", "beam", "beam-free", "beam-start"):
            raise NotOffered(name)
        source = [[_word(token) for token in row] for row in inputs.source_ids.tolist()]
        prefix = [[_word(self.text.bos_token_id)]] * inputs.batch
        # Its count leaves out `</s>` alone.
        tokens = START_TOKENS if name == "beam-start" else self.settings.new_tokens
        options = {
            "beam_size": 1 if name == "greedy" else NUM_BEAMS,
            "no_repeat_ngram_size": 0 if name == "beam-free" else NO_REPEAT_NGRAM_SIZE,
            "min_decoding_length": tokens - 1,
            "max_decoding_length": tokens - 1,
        }

        def answer() -> np.ndarray:
            results = self.translator.translate_batch(
                source,
                target_prefix=prefix,
                max_input_length=0,
                max_batch_size=0,
                **options,
            )
            return self._sequences(results)

        return answer

    def _sequences(self, results: Any) -> np.ndarray:
        numbers = {_word(token): token for token in range(self.text.vocab_size)}
        start, eos = self.text.decoder_start_token_id, self.text.eos_token_id
        return np.array(
            [[start, *(numbers[word] for word in r.hypotheses[0]), eos] for r in results]
        )


def convert(settings: Settings, folder: Path) -> None:
    """Write `settings.weights` as a CTranslate2 model into the new directory `folder`."""
    import torch
    from ctranslate2.converters.transformers import (  # pyright: ignore[reportMissingImports]
        BartLoader,
    )
    from transformers import BartForConditionalGeneration

    whole = load_model(settings, "eager").float().cpu()
    language = whole.model.language_model
    config = language.config
    # Attributes that transformers' own BART config lost and the converter reads.
    config.normalize_before, config.normalize_embedding = False, True
    with torch.device("meta"):
        bart: Any = BartForConditionalGeneration(config)
    bart.model, bart.lm_head = language, whole.lm_head
    bart.final_logits_bias = torch.zeros((1, config.vocab_size))

    spec: Any = BartLoader().get_model_spec(bart)
    text = settings.model_config().text
    words = [_word(token) for token in range(text.vocab_size)]
    spec.register_source_vocabulary(words)
    spec.register_target_vocabulary(words)
    spec.config.bos_token = _word(text.bos_token_id)
    spec.config.eos_token = _word(text.eos_token_id)
    spec.config.decoder_start_token = _word(text.decoder_start_token_id)
    spec.config.unk_token = _word(_UNKNOWN)
    spec.validate()
    spec.optimize(quantization=None)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    spec.save(str(partial))
    partial.rename(folder)


def _word(token: int) -> str:
    """A name for a token id: CTranslate2 speaks in words."""
    return f"<{token}>"
