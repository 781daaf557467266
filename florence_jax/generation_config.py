"""Decoding settings: what to generate, apart from any model, image or prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

EarlyStopping = bool | Literal["never"]

# Far beyond any use, far below where a setting from a file takes all memory or overflows int32.
_MAX_BEAMS = 1024
_MAX_TOKENS = 1 << 20
_MAX_ID = 1 << 24
_MAX_FLOAT = 1e6


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How tokens are chosen. Names and meanings are those of transformers 5's `GenerationConfig`.

    Fields:
      max_new_tokens: tokens generated after the decoder start token, `</s>` included. None means as
        many as the model's position table allows.
      min_new_tokens: `</s>` is banned until this many tokens are generated.
      num_beams: 1 is greedy decoding or sampling, more is beam search or beam sampling.
      do_sample: draw tokens instead of taking the best.
      early_stopping: when beam search stops. True: as soon as `num_beams` hypotheses are complete;
        False: when the best open beam, scored at its present length, cannot beat the worst complete
        one; "never": when it cannot even at the length that suits it best.
      length_penalty: a hypothesis scores `sum(log-probabilities) / length ** length_penalty`, where
        length counts the generated tokens, `</s>` included and the start token not.
      no_repeat_ngram_size: no n-gram of this size appears twice in a sequence; 0 allows all.
      repetition_penalty: above 1 makes tokens that a sequence already has less likely.
      temperature, top_k, top_p: sampling only. `top_k` 0 or None, and `top_p` 1, keep every token.
        As in transformers, `top_k` is 50 unless told otherwise.
      num_return_sequences: best beams, or independent samples, returned per row.
      decoder_start_token_id, bos_token_id, eos_token_id, pad_token_id: None means the model's.
      forced_bos_token_id, forced_eos_token_id: the first token, and the last one when
        `max_new_tokens` is reached. The defaults "bos" and "eos" are the model's own ids, which is
        what every published Florence-2 does; None forces nothing.

    Raises:
      ValueError: from the constructor, for a value out of range or a combination without meaning.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    num_beams: int = 1
    do_sample: bool = False
    early_stopping: EarlyStopping = False
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int | None = 50
    top_p: float = 1.0
    num_return_sequences: int = 1
    decoder_start_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    forced_bos_token_id: int | Literal["bos"] | None = "bos"
    forced_eos_token_id: int | Literal["eos"] | None = "eos"

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            _check_int("max_new_tokens", self.max_new_tokens, at_least=1, at_most=_MAX_TOKENS)
        _check_int("min_new_tokens", self.min_new_tokens, at_least=0, at_most=_MAX_TOKENS)
        _check_int("num_beams", self.num_beams, at_least=1, at_most=_MAX_BEAMS)
        ngram = self.no_repeat_ngram_size
        _check_int("no_repeat_ngram_size", ngram, at_least=0, at_most=_MAX_TOKENS)
        returned = self.num_return_sequences
        _check_int("num_return_sequences", returned, at_least=1, at_most=_MAX_BEAMS)
        if self.top_k is not None:
            _check_int("top_k", self.top_k, at_least=0, at_most=_MAX_ID)
        if not isinstance(self.do_sample, bool):
            raise ValueError(f"do_sample must be True or False, got {_shown(self.do_sample)}")
        if not (isinstance(self.early_stopping, bool) or self.early_stopping == "never"):
            raise ValueError(
                f'early_stopping must be True, False or "never", got {_shown(self.early_stopping)}'
            )
        _check_float("length_penalty", self.length_penalty)
        _check_float("repetition_penalty", self.repetition_penalty, above=0.0)
        hint = " (for greedy decoding set do_sample=False)" if self.temperature == 0 else ""
        _check_float("temperature", self.temperature, above=0.0, hint=hint)
        _check_float("top_p", self.top_p, above=0.0, at_most=1.0)
        self._check_ids()
        self._check_combinations()

    def _check_ids(self) -> None:
        for name in ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            if value is not None:
                _check_int(name, value, at_least=0, at_most=_MAX_ID)
        for name, word in (("forced_bos_token_id", "bos"), ("forced_eos_token_id", "eos")):
            value = getattr(self, name)
            if value is None or value == word:
                continue
            if isinstance(value, str):
                raise ValueError(
                    f'{name} must be a token id, None or "{word}", got {_shown(value)}'
                )
            _check_int(name, value, at_least=0, at_most=_MAX_ID)

    def _check_combinations(self) -> None:
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens ({self.min_new_tokens}) is above max_new_tokens "
                f"({self.max_new_tokens})"
            )
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"num_return_sequences ({self.num_return_sequences}) is above num_beams "
                f"({self.num_beams}): beam search has only num_beams hypotheses to return"
            )
        if self.num_beams == 1 and not self.do_sample and self.num_return_sequences > 1:
            raise ValueError(
                f"num_return_sequences ({self.num_return_sequences}) needs num_beams > 1 or "
                "do_sample=True: greedy decoding has one answer"
            )

    @classmethod
    def from_hf(
        cls,
        config: Mapping[str, Any],
        generation_config: Mapping[str, Any] | None = None,
    ) -> GenerationConfig:
        """The decoding settings that a checkpoint was published with.

        Args:
          config: the content of `config.json`, in the original or transformers' native naming.
          generation_config: the content of `generation_config.json`, where there is one.

        For each setting the first source that has it decides:
          1. `text_config` of `config.json`, when it departs from transformers' global default;
          2. `generation_config.json`;
          3. `text_config`, when it spells out the default;
          4. `PUBLISHED`.
        The first rule is why large keeps early_stopping True: its `text_config` says so and its
        `generation_config.json`, which says False, was never used by the original code. Token ids
        come from `text_config` first, because many fine-tunes carry wrong ids everywhere else.
        `max_length` and `min_length` count the start token; a `max_length` in `config.json` is a
        serialised default, not a wish, and is ignored.

        Raises:
          ValueError: a setting out of range, or a list of several eos ids.
        """
        text = config.get("text_config", config)
        generation = generation_config or {}
        for name, source in (("text_config", text), ("generation_config", generation)):
            if not isinstance(source, Mapping):
                raise ValueError(f"{name} must be an object of settings, got {_shown(source)}")
        for name in ("max_length", "min_length"):
            if generation.get(name) is not None:
                _check_int(
                    f"generation_config.{name}", generation[name], at_least=0, at_most=_MAX_TOKENS
                )
        settings: dict[str, Any] = {}
        for name, default in _TRANSFORMERS_DEFAULTS.items():
            if text.get(name, default) not in (None, default):
                settings[name] = text[name]
            elif generation.get(name) is not None:
                settings[name] = generation[name]
            elif text.get(name) is not None:
                settings[name] = text[name]
            else:
                settings[name] = getattr(PUBLISHED, name)
        for name in _TOKEN_IDS:
            source = next((s for s in (text, generation) if s.get(name) is not None), {})
            settings[name] = _single_id(name, source.get(name, getattr(PUBLISHED, name)))
        settings["max_new_tokens"] = generation.get("max_new_tokens")
        if settings["max_new_tokens"] is None and generation.get("max_length") is not None:
            settings["max_new_tokens"] = generation["max_length"] - 1
        settings["min_new_tokens"] = generation.get("min_new_tokens")
        if settings["min_new_tokens"] is None:
            settings["min_new_tokens"] = max(0, (generation.get("min_length") or 0) - 1)
        return cls(**settings)


def _check_int(name: str, value: object, *, at_least: int, at_most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}, got {_shown(value)}")
    if value > at_most:
        raise ValueError(f"{name} must be at most {at_most}, got {_shown(value)}")


def _is_huge(value: object) -> bool:
    return isinstance(value, int | float) and _MAX_FLOAT < abs(value) < math.inf


def _shown(value: object) -> str:
    """A setting from a file may be a text or list of any length."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 512:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _check_float(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    at_most: float = math.inf,
    hint: str = "",
) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not abs(value) <= _MAX_FLOAT
        or not above < value <= at_most
    ):
        bounds = "".join(
            [
                f" above {above:g}" if above > -math.inf else "",
                f" and at most {at_most:g}" if at_most < math.inf else "",
                f" within {_MAX_FLOAT:g}" if _is_huge(value) else "",
            ]
        )
        raise ValueError(f"{name} must be a finite number{bounds}, got {_shown(value)}{hint}")


def _single_id(name: str, value: Any) -> int | None:
    ids = value if isinstance(value, list | tuple) else [value]
    if len(ids) != 1:
        raise ValueError(
            f"{name} must be one token id, got {_shown(value)}: pass the one to stop at"
        )
    return ids[0]


# What every published Florence-2 decodes with: the original `text_config`.
PUBLISHED = GenerationConfig(
    num_beams=3,
    no_repeat_ngram_size=3,
    early_stopping=True,
    decoder_start_token_id=2,
    bos_token_id=0,
    eos_token_id=2,
    pad_token_id=1,
    forced_bos_token_id=0,
    forced_eos_token_id=2,
)

# transformers writes its defaults into config files, so a value equal to one of these says nothing
# about what the author wanted (transformers 5 `GenerationConfig._get_default_generation_params`).
_TRANSFORMERS_DEFAULTS: dict[str, Any] = {
    "num_beams": 1,
    "do_sample": False,
    "early_stopping": False,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "num_return_sequences": 1,
}
_TOKEN_IDS = (
    "decoder_start_token_id",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
